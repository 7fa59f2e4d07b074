// The gate's cold side on Linux. See pm_guest.h for the protocol.
#include "pm_guest.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

// Numbers of <linux/membarrier.h>, which the build machine need not have.
#define PM_MEMBARRIER_PRIVATE_EXPEDITED (1 << 3)
#define PM_MEMBARRIER_REGISTER_PRIVATE_EXPEDITED (1 << 4)

// 0: not asked yet, 1: there, 2: not there. Two threads that ask at once find the same.
static int pm_membarrier_state;

static long pm_membarrier(int command) { return syscall(__NR_membarrier, command, 0, 0); }

bool pm_gate_has_membarrier(void) {
  int state = __atomic_load_n(&pm_membarrier_state, __ATOMIC_ACQUIRE);
  if (state == 0) {
    bool registered = pm_membarrier(PM_MEMBARRIER_REGISTER_PRIVATE_EXPEDITED) == 0 &&
                      pm_membarrier(PM_MEMBARRIER_PRIVATE_EXPEDITED) == 0;
    state = registered ? 1 : 2;
    __atomic_store_n(&pm_membarrier_state, state, __ATOMIC_RELEASE);
  }
  return state == 1;
}

void pm_gate_link(pm_gate_port **head, pm_gate_port *port) {
  port->next = __atomic_load_n(head, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(head, &port->next, port, true, __ATOMIC_SEQ_CST,
                                      __ATOMIC_RELAXED)) {
  }
}

// Waits until the port is out of its access or has seen `request`.
static void pm_gate_wait(const pm_gate_port *port, uint64_t request) {
  for (unsigned spins = 0;; spins++) {
    if (__atomic_load_n(&port->in_access, __ATOMIC_ACQUIRE) == 0) return;
    if (__atomic_load_n(&port->seen, __ATOMIC_ACQUIRE) >= request) return;
    if (spins < 256) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    } else {
      // The vCPU's thread may be preempted in the middle of an access.
      sched_yield();
    }
  }
}

void pm_gate_request(pm_gate_port *const *head, uint64_t *requests, bool fenced) {
  uint64_t request = __atomic_add_fetch(requests, 1, __ATOMIC_SEQ_CST);
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  uint64_t self = pm_thread_token();
  bool others = false;
  const pm_gate_port *first = __atomic_load_n(head, __ATOMIC_SEQ_CST);
  for (const pm_gate_port *port = first; port != NULL; port = port->next) {
    uint64_t owner = __atomic_load_n(&port->owner, __ATOMIC_SEQ_CST);
    if (owner != 0 && owner != self) others = true;
  }
  if (!others) return;
  // Registered and supported, it cannot fail; were it to, the wait below would prove nothing.
  if (!fenced && pm_membarrier(PM_MEMBARRIER_PRIVATE_EXPEDITED) != 0) __builtin_trap();
  for (const pm_gate_port *port = first; port != NULL; port = port->next) {
    if (__atomic_load_n(&port->owner, __ATOMIC_ACQUIRE) != self) pm_gate_wait(port, request);
  }
}
