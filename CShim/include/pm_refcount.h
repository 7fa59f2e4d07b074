// Reference counts: one signed 32-bit word per frame, as the kernel's `_refcount`.
//
// In C because Swift cannot apply atomics to words of a table it does not declare, and because the
// order of each operation is part of its name. Operations without a result are relaxed; those that
// return a value are fully ordered; conditional ones are fully ordered when they succeed and relaxed
// when they fail; a release store ends a freeze. (The kernel's rules for page_ref_*, Linux 6.1.)
//
// pre (all): `count` points to a word of a live frame table. The word wraps as two's complement.
#ifndef PM_REFCOUNT_H
#define PM_REFCOUNT_H

#include <stdbool.h>
#include <stdint.h>

#include "pm_planted.h"

#define PM_INLINE static inline __attribute__((always_inline))

/// What one pin adds to the count of a page that is not part of a large folio
/// (`GUP_PIN_COUNTING_BIAS`).
#define PM_REFCOUNT_PIN_BIAS 1024

/// Reads the count. Relaxed. Mirrors `page_ref_count`.
PM_INLINE int32_t pm_refcount_load_relaxed(const int32_t *_Nonnull count) {
  return __atomic_load_n(count, __ATOMIC_RELAXED);
}

/// Stores a count. Relaxed; for a page that nobody else can reach. Mirrors `set_page_count`.
PM_INLINE void pm_refcount_store_relaxed(int32_t *_Nonnull count, int32_t value) {
  __atomic_store_n(count, value, __ATOMIC_RELAXED);
}

/// Adds 1 and returns the old count, which tells a get from 0 and one past the largest value. Relaxed.
/// Mirrors `page_ref_inc`.
PM_INLINE int32_t pm_refcount_fetch_inc_relaxed(int32_t *_Nonnull count) {
  if (pm_planted(PM_PLANTED_GET_NOT_ATOMIC)) {
    int32_t old = __atomic_load_n(count, __ATOMIC_RELAXED);
    __atomic_store_n(count, (int32_t)((uint32_t)old + 1), __ATOMIC_RELAXED);
    return old;
  }
  return __atomic_fetch_add(count, 1, __ATOMIC_RELAXED);
}

/// Adds 1. Relaxed. For batches over cold frames, where a result would keep increments from
/// overlapping.
PM_INLINE void pm_refcount_inc_relaxed(int32_t *_Nonnull count) {
  __atomic_fetch_add(count, 1, __ATOMIC_RELAXED);
}

/// What a get found.
typedef struct pm_refcount_get {
  /// The count before it.
  int32_t old;
  /// The count went past the largest value.
  bool overflowed;
} pm_refcount_get;

/// As `pm_refcount_fetch_inc_relaxed`, and says whether the count went past the largest value. On x86-64 that is
/// a flag of the exchange-add, so that a caller has one comparison to make; see `pm_refcount_dec_outcome_seq_cst`.
PM_INLINE pm_refcount_get pm_refcount_get_relaxed(int32_t *_Nonnull count) {
#if defined(__x86_64__) && !defined(PM_THREAD_SANITIZER) && !defined(PM_PLANTED_BUGS)
  pm_refcount_get get = {1, false};
  __asm__ volatile("lock xaddl %0, %1" : "+r"(get.old), "+m"(*count), "=@cco"(get.overflowed));
  return get;
#else
  int32_t old = pm_refcount_fetch_inc_relaxed(count);
  return (pm_refcount_get){old, old == INT32_MAX};
#endif
}

/// Subtracts 1. Relaxed. Mirrors `page_ref_dec`.
PM_INLINE void pm_refcount_dec_relaxed(int32_t *_Nonnull count) {
  __atomic_fetch_sub(count, 1, __ATOMIC_RELAXED);
}

/// Adds `delta` (a pin adds PM_REFCOUNT_PIN_BIAS) and returns the old count. Relaxed. Mirrors
/// `page_ref_add`.
PM_INLINE int32_t pm_refcount_fetch_add_relaxed(int32_t *_Nonnull count, int32_t delta) {
  return __atomic_fetch_add(count, delta, __ATOMIC_RELAXED);
}

/// Subtracts `delta`. Relaxed. Mirrors `page_ref_sub`.
PM_INLINE void pm_refcount_sub_relaxed(int32_t *_Nonnull count, int32_t delta) {
  __atomic_fetch_sub(count, delta, __ATOMIC_RELAXED);
}

/// Adds `delta` and returns the new count. Fully ordered. Mirrors `page_ref_inc_return`.
PM_INLINE int32_t pm_refcount_add_return_seq_cst(int32_t *_Nonnull count, int32_t delta) {
  return __atomic_add_fetch(count, delta, __ATOMIC_SEQ_CST);
}

/// Subtracts `delta` and returns the new count. Fully ordered. Mirrors `page_ref_sub_return`.
PM_INLINE int32_t pm_refcount_sub_return_seq_cst(int32_t *_Nonnull count, int32_t delta) {
  return __atomic_sub_fetch(count, delta, __ATOMIC_SEQ_CST);
}

/// Subtracts 1; true iff the count became 0. Fully ordered: all that was done under the reference
/// happens before the page is freed. Mirrors `put_page_testzero`.
PM_INLINE bool pm_refcount_dec_and_test_seq_cst(int32_t *_Nonnull count) {
  return __atomic_sub_fetch(count, 1, __ATOMIC_SEQ_CST) == 0;
}

/// What a count came to by a put.
typedef struct pm_refcount_outcome {
  /// It is 0: the caller had the last reference.
  bool zero;
  /// It is below 0: the caller had none.
  bool negative;
} pm_refcount_outcome;

/// Subtracts 1 and says what the count became. Fully ordered. On x86-64 both answers are flags of the
/// decrement; a compiler asked for two takes an exchange-add and compares its result, which takes
/// longer. In assembly where there are flags, except for ThreadSanitizer, which has to see an atomic.
PM_INLINE pm_refcount_outcome pm_refcount_dec_outcome_seq_cst(int32_t *_Nonnull count) {
  pm_refcount_outcome outcome;
#if defined(__x86_64__) && !defined(PM_THREAD_SANITIZER)
  __asm__ volatile("lock decl %0"
                   : "+m"(*count), "=@ccz"(outcome.zero), "=@ccs"(outcome.negative)
                   :
                   : "memory");
#else
  int32_t new = __atomic_sub_fetch(count, 1, __ATOMIC_SEQ_CST);
  outcome.zero = new == 0;
  outcome.negative = new < 0;
#endif
  return outcome;
}

/// Subtracts `delta`; true iff the count became 0. Fully ordered. Mirrors `page_ref_sub_and_test`.
PM_INLINE bool pm_refcount_sub_and_test_seq_cst(int32_t *_Nonnull count, int32_t delta) {
  return __atomic_sub_fetch(count, delta, __ATOMIC_SEQ_CST) == 0;
}

/// Adds `delta` unless the count is `unless`; true iff added. Fully ordered on success.
/// Mirrors `page_ref_add_unless`; with 0 the try-get of speculative lookups.
PM_INLINE bool pm_refcount_add_unless_seq_cst(int32_t *_Nonnull count, int32_t delta,
                                              int32_t unless) {
  int32_t old = __atomic_load_n(count, __ATOMIC_RELAXED);
  do {
    if (old == unless && !pm_planted(PM_PLANTED_TRYGET_FROM_ZERO)) return false;
  } while (!__atomic_compare_exchange_n(count, &old, (int32_t)((uint32_t)old + (uint32_t)delta),
                                        true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
  return true;
}

/// Adds 1 unless the count is 0; true iff added. Fully ordered on success.
/// Mirrors `get_page_unless_zero`.
PM_INLINE bool pm_refcount_inc_unless_zero_seq_cst(int32_t *_Nonnull count) {
  return pm_refcount_add_unless_seq_cst(count, 1, 0);
}

/// Sets the count to 0 if it is `expected`; true iff it was. Fully ordered on success.
/// Mirrors `page_ref_freeze`.
PM_INLINE bool pm_refcount_freeze_seq_cst(int32_t *_Nonnull count, int32_t expected) {
  if (pm_planted(PM_PLANTED_FREEZE_IGNORES_COUNT)) {
    expected = __atomic_load_n(count, __ATOMIC_RELAXED);
  }
  return __atomic_compare_exchange_n(count, &expected, 0, false, __ATOMIC_SEQ_CST,
                                     __ATOMIC_RELAXED);
}

/// Stores `value` with release order: ends a freeze. Mirrors `page_ref_unfreeze`.
PM_INLINE void pm_refcount_unfreeze_release(int32_t *_Nonnull count, int32_t value) {
  __atomic_store_n(count, value, __ATOMIC_RELEASE);
}

/// Asks for the word's cache line in a state that can be written. In C: no Swift intrinsic. Named by
/// its instruction on x86-64, where the compiler's builtin asks for a line to be read unless told
/// that the processor has it; those that lack it take it for nothing.
PM_INLINE void pm_prefetch_write(const void *_Nonnull address) {
#if defined(__x86_64__)
  __asm__ volatile("prefetchw %0" : : "m"(*(const char *)address));
#else
  __builtin_prefetch(address, 1, 3);
#endif
}

/// Asks for a cache line to be read.
PM_INLINE void pm_prefetch_read(const void *_Nonnull address) {
  __builtin_prefetch(address, 0, 3);
}

#endif
