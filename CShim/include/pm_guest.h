// What a software guest needs of the machine: loads and stores of guest memory, and the gate
// through which its translations are shot down.
//
// In C because guest memory is changed by other guests at any time (Swift has no volatile), because
// the gate's order is between processors (a compiler fence on the hot side, membarrier on the
// other), and because membarrier has no C library function.
//
// The gate. A vCPU's thread brackets every access by pm_gate_enter and pm_gate_leave: plain stores
// and one load. A thread that takes translations away first changes the tables, then calls
// pm_gate_request: it raises the request counter, makes every running thread of the process pass a
// memory barrier, and waits until each vCPU is out of its access or has seen the new counter.
// Whoever saw the old counter had its `in_access` visible before the barrier, and is waited for;
// whoever stored it later sees the new one, and drops its translations first.
#ifndef PM_GUEST_H
#define PM_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pm_refcount.h"

// ---- The gate -----------------------------------------------------------------------------------

/// A translation: a guest frame with the epoch it belongs to, and the host address of its bytes, in
/// which bit 0 says whether the guest may write.
typedef struct pm_translation {
  uint64_t tag;
  uint64_t page;
} pm_translation;

/// A vCPU's place in a gate; 64 bytes, to be put on a cache line of its own. Linked for good: only
/// `owner` says whether it is in use. The second half is what an access reads besides, constant but
/// for the epoch, and of no interest to the gate.
typedef struct pm_gate_port {
  /// 1 while the vCPU's thread is inside of an access.
  uint64_t in_access;
  /// The value of the request counter that the vCPU acted on last.
  uint64_t seen;
  /// The token of the thread that runs the vCPU, or 0.
  uint64_t owner;
  /// The next port of the gate.
  struct pm_gate_port *_Nullable next;
  /// The gate's request counter.
  const uint64_t *_Nonnull requests;
  /// Whether accesses need a fence, for hosts without membarrier.
  uint64_t fenced;
  /// The vCPU's translations; it alone touches them.
  pm_translation *_Nonnull entries;
  /// What the tags of valid translations have in their highest bits.
  uint64_t epoch;
} pm_gate_port;

_Static_assert(sizeof(pm_gate_port) == 64, "a port is one cache line");

/// A number that stands for the calling thread while it lives; never 0. In C: the thread pointer is
/// a register.
PM_INLINE uint64_t pm_thread_token(void) {
#if defined(__x86_64__)
  uint64_t token;
  __asm__("movq %%fs:0, %0" : "=r"(token));
  return token;
#else
  return (uint64_t)(uintptr_t)__builtin_thread_pointer();
#endif
}

/// Enters an access; true iff no flush was requested since the vCPU acted on the last one. If the
/// port says so the store and the load are kept in order by the processor, else only by the
/// compiler.
/// pre: the calling thread owns the port.
PM_INLINE bool pm_gate_enter(pm_gate_port *_Nonnull port) {
  __atomic_store_n(&port->in_access, 1, __ATOMIC_RELAXED);
  if (__builtin_expect(port->fenced != 0, 0)) __atomic_thread_fence(__ATOMIC_SEQ_CST);
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
  return __builtin_expect(__atomic_load_n(port->requests, __ATOMIC_ACQUIRE) ==
                              __atomic_load_n(&port->seen, __ATOMIC_RELAXED),
                          1);
}

/// Leaves an access. Release: its loads and stores are done. pre: as above.
PM_INLINE void pm_gate_leave(pm_gate_port *_Nonnull port) {
  __atomic_store_n(&port->in_access, 0, __ATOMIC_RELEASE);
}

/// Whether the port is inside of an access. Relaxed.
PM_INLINE bool pm_gate_is_entered(const pm_gate_port *_Nonnull port) {
  return __atomic_load_n(&port->in_access, __ATOMIC_RELAXED) != 0;
}

/// Reads a request counter. Acquire.
PM_INLINE uint64_t pm_gate_requests_load_acquire(const uint64_t *_Nonnull requests) {
  return __atomic_load_n(requests, __ATOMIC_ACQUIRE);
}

/// Publishes the counter value that the vCPU has acted on. Release. pre: its translations of before
/// are dropped.
PM_INLINE void pm_gate_seen_store_release(pm_gate_port *_Nonnull port, uint64_t value) {
  __atomic_store_n(&port->seen, value, __ATOMIC_RELEASE);
}

/// Reads a port's owner. Relaxed.
PM_INLINE uint64_t pm_gate_owner_load_relaxed(const pm_gate_port *_Nonnull port) {
  return __atomic_load_n(&port->owner, __ATOMIC_RELAXED);
}

/// Names the thread that runs the vCPU (0: none). Fully ordered: a flush request that does not see
/// the owner yet is seen by the owner's next access.
PM_INLINE void pm_gate_owner_store_seq_cst(pm_gate_port *_Nonnull port, uint64_t token) {
  __atomic_exchange_n(&port->owner, token, __ATOMIC_SEQ_CST);
}

#pragma GCC visibility push(hidden)

/// Whether this process can make all its running threads pass a barrier (membarrier, private
/// expedited; Linux 4.14). Registers the process for it at the first call.
bool pm_gate_has_membarrier(void);

/// Links a port into a gate's list. Release; any thread.
void pm_gate_link(pm_gate_port *_Nullable *_Nonnull head, pm_gate_port *_Nonnull port);

/// Raises the request counter and waits until every port of the list whose owner is another thread
/// is out of its access or has seen the new value. Fully ordered: what the caller changed before is
/// seen by every access that begins after, and what accesses of before did is visible to the
/// caller. With `fenced` no barrier is sent out, see pm_gate_enter; none is either where no other
/// thread owns a port.
/// pre: no port's owner waits, inside of an access, for something the caller holds.
void pm_gate_request(
    pm_gate_port *_Nullable const *_Nonnull head, uint64_t *_Nonnull requests, bool fenced);

#pragma GCC visibility pop

// ---- Guest memory -------------------------------------------------------------------------------

// Other vCPUs and devices change guest memory at any time; that is the guest's affair, and no race
// of ours. Each access is made once and not merged with another; one that is aligned is whole. What
// is loaded says nothing about other memory: an acquire of the guest's is more than an access.
// pre (all): the bytes lie within one page that is mapped.

typedef struct __attribute__((packed)) pm_guest_word16 { uint16_t value; } pm_guest_word16;
typedef struct __attribute__((packed)) pm_guest_word32 { uint32_t value; } pm_guest_word32;
typedef struct __attribute__((packed)) pm_guest_word64 { uint64_t value; } pm_guest_word64;

// ThreadSanitizer must not see them. Swift's importer of this header does not know of it: the runs with it
// define PM_THREAD_SANITIZER.
#if defined(PM_THREAD_SANITIZER)
#define PM_GUEST_ACCESS static __attribute__((no_sanitize("thread"), noinline, unused))
#else
#define PM_GUEST_ACCESS PM_INLINE
#endif

/// Loads one byte.
PM_GUEST_ACCESS uint8_t pm_guest_load_u8(const void *_Nonnull address) {
  return *(const volatile uint8_t *)address;
}
/// Loads two bytes, little end first on a little-endian host.
PM_GUEST_ACCESS uint16_t pm_guest_load_u16(const void *_Nonnull address) {
  return ((const volatile pm_guest_word16 *)address)->value;
}
/// Loads four bytes.
PM_GUEST_ACCESS uint32_t pm_guest_load_u32(const void *_Nonnull address) {
  return ((const volatile pm_guest_word32 *)address)->value;
}
/// Loads eight bytes.
PM_GUEST_ACCESS uint64_t pm_guest_load_u64(const void *_Nonnull address) {
  return ((const volatile pm_guest_word64 *)address)->value;
}
/// Stores one byte.
PM_GUEST_ACCESS void pm_guest_store_u8(void *_Nonnull address, uint8_t value) {
  *(volatile uint8_t *)address = value;
}
/// Stores two bytes.
PM_GUEST_ACCESS void pm_guest_store_u16(void *_Nonnull address, uint16_t value) {
  ((volatile pm_guest_word16 *)address)->value = value;
}
/// Stores four bytes.
PM_GUEST_ACCESS void pm_guest_store_u32(void *_Nonnull address, uint32_t value) {
  ((volatile pm_guest_word32 *)address)->value = value;
}
/// Stores eight bytes.
PM_GUEST_ACCESS void pm_guest_store_u64(void *_Nonnull address, uint64_t value) {
  ((volatile pm_guest_word64 *)address)->value = value;
}

#endif
