#include "pm_limits_memory.h"

#include <sys/resource.h>

static volatile int sink;

void pm_limit_shared_pairs(int32_t *counts, size_t stride, uint32_t mask, uint32_t thread,
                           size_t n) {
  uint32_t index = thread & mask;
  for (size_t i = 0; i < n; i++) {
    int32_t *count = counts + index * stride;
    __atomic_fetch_add(count, 1, __ATOMIC_RELAXED);
    if (__atomic_sub_fetch(count, 1, __ATOMIC_SEQ_CST) == 0) sink = 1;
    index = (index * 5 + (2 * thread + 1)) & mask;
  }
}

void pm_limit_hand_over(uint32_t *word, uint32_t side, size_t n) {
  for (size_t i = 0; i < n; i++) {
    while ((__atomic_load_n(word, __ATOMIC_ACQUIRE) & 1) != side) {
    }
    __atomic_fetch_add(word, 1, __ATOMIC_RELEASE);
  }
}

static size_t faults(void) {
  struct rusage usage;
  if (getrusage(RUSAGE_THREAD, &usage) != 0) return 0;
  return (size_t)(usage.ru_minflt + usage.ru_majflt);
}

size_t pm_limit_touch(void *base, size_t bytes) {
  size_t before = faults();
  for (size_t at = 0; at < bytes; at += 4096)
    *(volatile uint64_t *)(void *)((char *)base + at) = at;
  return faults() - before;
}

uint64_t pm_limit_chase(const void *base, size_t bytes, uint64_t seed, size_t n) {
  uint64_t lines = bytes / 64;
  uint64_t state = seed;
  uint64_t sum = 0;
  for (size_t i = 0; i < n; i++) {
    uint64_t line = ((state >> 32) * lines) >> 32;
    uint64_t word = *(const volatile uint64_t *)(const void *)((const char *)base + line * 64);
    sum += word;
    // The next place waits for the word.
    state = (state + word) * 0x5851f42d4c957f2dull + 0x14057b7ef767814full;
  }
  return sum;
}
