#include "pm_layout.h"

#include <sched.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

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

// The words of the frames after the first are read in pieces of which two overlap, to leave the first
// one's out: they were stored a moment ago, and a wide load of them would wait until the stores have left the
// processor's store buffer.
#if defined(__x86_64__)
#define PM_LOAD128(address) _mm_loadu_si128((const __m128i *)(const void *)(address))
#define PM_LOAD256(address) _mm256_loadu_si256((const __m256i *)(const void *)(address))

PM_SWEEP static inline bool is_plain_sse2(const uint16_t *states, const int32_t *counts, size_t n,
                                          uint16_t mask) {
  __m128i state = PM_LOAD128(states + 1);
  __m128i seen = PM_LOAD128(counts + 1);
  for (size_t i = 8; i < n; i += 8) state = _mm_or_si128(state, PM_LOAD128(states + i));
  for (size_t i = 4; i < n; i += 4) seen = _mm_or_si128(seen, PM_LOAD128(counts + i));
  seen = _mm_or_si128(seen, _mm_and_si128(state, _mm_set1_epi16((int16_t)mask)));
  return _mm_movemask_epi8(_mm_cmpeq_epi32(seen, _mm_setzero_si128())) == 0xffff;
}

PM_SWEEP __attribute__((target("avx2"))) static bool is_plain_avx2(const uint16_t *states,
                                                                   const int32_t *counts, size_t n,
                                                                   uint16_t mask) {
  __m256i state = PM_LOAD256(states + 1);
  __m256i low = PM_LOAD256(counts + 1), high = PM_LOAD256(counts + 8);
#pragma clang loop unroll_count(4)
  for (size_t i = 16; i < n; i += 16) {
    state = _mm256_or_si256(state, PM_LOAD256(states + i));
    low = _mm256_or_si256(low, PM_LOAD256(counts + i));
    high = _mm256_or_si256(high, PM_LOAD256(counts + i + 8));
  }
  state = _mm256_and_si256(state, _mm256_set1_epi16((int16_t)mask));
  low = _mm256_or_si256(_mm256_or_si256(low, high), state);
  return _mm256_testz_si256(low, low) != 0;
}
#endif

PM_SWEEP bool pm_block_is_plain(const uint16_t *states, const int32_t *counts, size_t n,
                                uint16_t mask) {
  if (__atomic_load_n(counts, __ATOMIC_RELAXED) != 0) return false;
#if defined(__x86_64__)
  if (n == 16) return is_plain_sse2(states, counts, 16, mask);
  if (n > 16) {
    return __builtin_cpu_supports("avx2") ? is_plain_avx2(states, counts, n, mask)
                                          : is_plain_sse2(states, counts, n, mask);
  }
#endif
  uint32_t seen = pm_frames_sweep(states + 1, counts + 1, n - 1);
  return (seen & (PM_SWEEP_COUNT | mask)) == 0;
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
