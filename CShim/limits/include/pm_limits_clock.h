// The clock of single operations: the processor's time stamp counter where it runs at one speed, else
// the kernel's monotonic clock.
//
// In C because the counter is an instruction, and inline because a call would be a part of what is
// timed.
#ifndef PM_LIMITS_CLOCK_H
#define PM_LIMITS_CLOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <x86intrin.h>
#endif

/// Nanoseconds of the kernel's monotonic clock.
static inline uint64_t pm_limit_nanoseconds(void) {
  struct timespec now;
  (void)clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

/// Whether the processor has a counter of constant speed that user space may read.
static inline bool pm_limit_has_counter(void) {
#if defined(__x86_64__)
  unsigned a, b, c, d;
  return __get_cpuid(0x80000007, &a, &b, &c, &d) != 0 && (d & 1u << 8) != 0;
#else
  return false;
#endif
}

/// The counter's ticks, or nanoseconds where `counter` is false. What comes before in the program is
/// done when it is read, and what comes behind has not begun.
///
/// pre: `counter` only where `pm_limit_has_counter` says so.
static inline __attribute__((always_inline)) uint64_t pm_limit_now(bool counter) {
#if defined(__x86_64__)
  if (__builtin_expect(counter, 1)) {
    _mm_lfence();
    uint64_t ticks = __rdtsc();
    _mm_lfence();
    return ticks;
  }
#else
  (void)counter;
#endif
  return pm_limit_nanoseconds();
}

#endif
