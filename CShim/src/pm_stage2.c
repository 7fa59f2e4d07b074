#include "pm_stage2.h"

// The sweeps below read and write entries in wide pieces while lock-free walkers may load the same
// words atomically. On x86-64 and arm64 each aligned word of a wide access is read and written
// whole, and the contracts rule out that two threads change one word, so a walker sees the old or
// the new entry. ThreadSanitizer has to be told so.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define PM_SWEEP __attribute__((no_sanitize("thread"), noinline))
#endif
#endif
#ifndef PM_SWEEP
#define PM_SWEEP
#endif

// One source for all tables: a cursor that was made for one never fits another.
static uint64_t pm_generations = 1;

void pm_stage2_generation_renew(uint64_t *generation) {
  uint64_t value = __atomic_add_fetch(&pm_generations, 1, __ATOMIC_RELAXED);
  __atomic_store_n(generation, value, __ATOMIC_RELEASE);
}

PM_SWEEP bool pm_sptes_are_zero(const uint64_t *slots, size_t n) {
  uint64_t all = 0;
  for (size_t i = 0; i < n; i++) all |= slots[i];
  return all == 0;
}

PM_SWEEP void pm_sptes_fill(uint64_t *slots, size_t n, uint64_t first, unsigned shift) {
  // Added up, not multiplied: so the compiler's wide form has one addition per store.
  uint64_t step = (uint64_t)1 << shift;
  // Four wide stores a round: with two the time hangs on where the loop's first byte falls, by a third
  // where another thread shares the core.
#pragma clang loop interleave_count(4)
  for (size_t i = 0; i < n; i++, first += step) slots[i] = first;
}
