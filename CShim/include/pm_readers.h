// Readers of published tables: who reads brackets the reading by pm_readers_enter and pm_readers_leave, and who
// took a table out of publication waits in pm_readers_wait until nobody reads it any more.
//
// One gate (pm_guest.h) for the whole process, with a port for each thread that ever reads: entering is two
// plain stores and two loads, whatever table is read. No lock is held by a reader, so that one that dies holds
// none. A thread's first entry links its port, under a lock; its end unlinks it.
//
// In C because a port is a thread-local variable, and the order between processors is the gate's.
#ifndef PM_READERS_H
#define PM_READERS_H

#include "pm_guest.h"

#pragma GCC visibility push(hidden)

/// The calling thread's port. Its own: nobody else writes to it.
extern _Thread_local pm_gate_port pm_readers_port __attribute__((tls_model("initial-exec")));

/// What an entry does at the thread's first, and after each wait of another thread: links the port if it is not,
/// and takes note of the request. pre: the calling thread's port, entered.
void pm_readers_refresh(pm_gate_port *_Nonnull port);

/// Waits until every reader that entered before has left. What the caller took out of publication before is
/// then seen by nobody.
/// pre: the calling thread is not inside. Takes a lock that readers take only at their first entry.
void pm_readers_wait(void);

/// How many threads have a port now; for tests.
uint64_t pm_readers_count(void);

#pragma GCC visibility pop

/// Enters: what is loaded from a publication (acquire) from here on stays until pm_readers_leave.
/// pre: the calling thread is not inside.
PM_INLINE pm_gate_port *_Nonnull pm_readers_enter(void) {
  pm_gate_port *port = &pm_readers_port;
  if (__builtin_expect(!pm_gate_enter(port), 0)) pm_readers_refresh(port);
  return port;
}

/// Leaves. pre: the port is what the entry returned, in the same thread.
PM_INLINE void pm_readers_leave(pm_gate_port *_Nonnull port) { pm_gate_leave(port); }

// ---- Atomic guest words --------------------------------------------------------------------------

// Atomic with respect to all processors, the guest's too. pre: aligned to the width.
#define PM_GUEST_ATOMICS(suffix, type)                                                              \
  PM_INLINE type pm_guest_atomic_load_acquire_##suffix(const void *_Nonnull address) {              \
    return __atomic_load_n((const type *)address, __ATOMIC_ACQUIRE);                                \
  }                                                                                                 \
  PM_INLINE void pm_guest_atomic_store_release_##suffix(void *_Nonnull address, type value) {       \
    __atomic_store_n((type *)address, value, __ATOMIC_RELEASE);                                     \
  }                                                                                                 \
  PM_INLINE bool pm_guest_atomic_cas_seq_cst_##suffix(                                              \
      void *_Nonnull address, type *_Nonnull expected, type desired) {                              \
    return __atomic_compare_exchange_n(                                                             \
        (type *)address, expected, desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);             \
  }                                                                                                 \
  PM_INLINE type pm_guest_atomic_add_seq_cst_##suffix(void *_Nonnull address, type value) {         \
    return __atomic_fetch_add((type *)address, value, __ATOMIC_SEQ_CST);                            \
  }

PM_GUEST_ATOMICS(u8, uint8_t)
PM_GUEST_ATOMICS(u16, uint16_t)
PM_GUEST_ATOMICS(u32, uint32_t)
PM_GUEST_ATOMICS(u64, uint64_t)

#undef PM_GUEST_ATOMICS

/// Copies bytes that guests may change meanwhile: they arrive in any mixture of before and after. Not seen by
/// ThreadSanitizer, as it is the guest's affair. pre: the ranges do not overlap.
PM_GUEST_ACCESS void pm_guest_copy(void *_Nonnull to, const void *_Nonnull from, size_t length) {
#if defined(PM_THREAD_SANITIZER)
  const volatile uint8_t *source = (const volatile uint8_t *)from;
  volatile uint8_t *destination = (volatile uint8_t *)to;
  for (size_t i = 0; i < length; i++) destination[i] = source[i];
#else
  __builtin_memcpy(to, from, length);
#endif
}

/// Sets bytes, under the same rules.
PM_GUEST_ACCESS void pm_guest_fill(void *_Nonnull to, uint8_t byte, size_t length) {
#if defined(PM_THREAD_SANITIZER)
  volatile uint8_t *destination = (volatile uint8_t *)to;
  for (size_t i = 0; i < length; i++) destination[i] = byte;
#else
  __builtin_memset(to, byte, length);
#endif
}

#endif
