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
    for (int spins = 0; spins < 64; spins++) {
      // Not too eager: two CPUs that refill at the same moment go on in step, each one's prefetcher
      // ahead in the lines that the other writes; the loser of this round falls out of step.
      for (int wait = 0; wait < 16; wait++) __builtin_ia32_pause();
      if (__atomic_load_n(lock, __ATOMIC_RELAXED) == 0 &&
          __atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE) == 0)
        return;
    }
    sched_yield();
  }
}

// One body for every instruction set: the compiler makes wide loads of it as far as it may.
#define PM_SWEEP_BODY                        \
  uint16_t state = 0;                        \
  int32_t count = 0;                         \
  for (size_t i = 0; i < n; i++) {           \
    state |= states[i];                      \
  }                                          \
  for (size_t i = 0; i < n; i++) {           \
    count |= counts[i];                      \
  }                                          \
  return state | (count != 0 ? PM_SWEEP_COUNT : 0)

#if defined(__x86_64__)
PM_SWEEP __attribute__((target("avx2"))) static uint32_t sweep_avx2(const uint16_t *states,
                                                                    const int32_t *counts,
                                                                    size_t n) {
  PM_SWEEP_BODY;
}
#endif

PM_SWEEP static uint32_t sweep_baseline(const uint16_t *states, const int32_t *counts, size_t n) {
  PM_SWEEP_BODY;
}

PM_SWEEP uint32_t pm_frames_sweep(const uint16_t *states, const int32_t *counts, size_t n) {
  if (n < 16) {
    // Short blocks are the common ones; a plain loop has no set-up.
    uint32_t state = 0;
    int32_t count = 0;
#pragma clang loop vectorize(disable) unroll(disable)
    for (size_t i = 0; i < n; i++) {
      state |= states[i];
      count |= counts[i];
    }
    return state | (count != 0 ? PM_SWEEP_COUNT : 0);
  }
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) return sweep_avx2(states, counts, n);
#endif
  return sweep_baseline(states, counts, n);
}

PM_SWEEP uint32_t pm_frames_sweep_strided(const uint16_t *states, const int32_t *counts, size_t n,
                                          uint32_t shift) {
  uint32_t state = 0;
  int32_t count = 0;
  for (size_t i = 0; i < n; i++) {
    state |= states[i];
    count |= counts[i << shift];
  }
  return state | (count != 0 ? PM_SWEEP_COUNT : 0);
}

PM_SWEEP void pm_states_fill(uint16_t *states, size_t n, uint16_t value) {
  for (size_t i = 0; i < n; i++) states[i] = value;
}
