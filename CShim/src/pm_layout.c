#include "pm_layout.h"

#include <sched.h>

// The sweeps below read and write table words in wide pieces while other threads may load the same
// words atomically. On x86-64 each aligned word is read and written whole, and every caller owns the
// frames it sweeps, so no decision rests on a word that another thread is changing.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define PM_SWEEP __attribute__((no_sanitize("thread"), noinline))
#endif
#endif
#ifndef PM_SWEEP
#define PM_SWEEP
#endif

void pm_lock_contended(uint32_t *lock) {
  for (;;) {
    for (int spins = 0; spins < 512; spins++) {
      if (__atomic_load_n(lock, __ATOMIC_RELAXED) == 0 &&
          __atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE) == 0)
        return;
      __builtin_ia32_pause();
    }
    sched_yield();
  }
}

PM_SWEEP uint16_t pm_states_or(const uint16_t *states, size_t n) {
  uint16_t all = 0;
  for (size_t i = 0; i < n; i++) all |= states[i];
  return all;
}

PM_SWEEP bool pm_counts_all_zero(const int32_t *counts, size_t n) {
  int32_t all = 0;
  for (size_t i = 0; i < n; i++) all |= counts[i];
  return all == 0;
}

PM_SWEEP void pm_states_fill(uint16_t *states, size_t n, uint16_t value) {
  for (size_t i = 0; i < n; i++) states[i] = value;
}

PM_SWEEP void pm_counts_fill(int32_t *counts, size_t n, int32_t value) {
  for (size_t i = 0; i < n; i++) counts[i] = value;
}
