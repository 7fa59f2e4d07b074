#include "pm_limits.h"

#include <errno.h>
#include <stdbool.h>
#include <sys/mman.h>

// Stores to it keep the tests below from being dropped.
static volatile int sink;

void pm_limit_pair(int32_t *count, size_t n) {
  for (size_t i = 0; i < n; i++) {
    __atomic_fetch_add(count, 1, __ATOMIC_RELAXED);
    if (__atomic_sub_fetch(count, 1, __ATOMIC_SEQ_CST) == 0) sink = 1;
  }
}

void pm_limit_tryget(int32_t *count, size_t n) {
  for (size_t i = 0; i < n; i++) {
    int32_t old = __atomic_load_n(count, __ATOMIC_RELAXED);
    bool added = false;
    while (old != 0) {
      if (__atomic_compare_exchange_n(count, &old, old + 1, true, __ATOMIC_SEQ_CST,
                                      __ATOMIC_RELAXED)) {
        added = true;
        break;
      }
    }
    if (!added) sink = 2;
    if (__atomic_sub_fetch(count, 1, __ATOMIC_SEQ_CST) == 0) sink = 1;
  }
}

void pm_limit_freeze(int32_t *count, size_t n) {
  for (size_t i = 0; i < n; i++) {
    int32_t expected = 1;
    if (!__atomic_compare_exchange_n(count, &expected, 0, false, __ATOMIC_SEQ_CST,
                                     __ATOMIC_RELAXED))
      sink = 3;
    __atomic_store_n(count, 1, __ATOMIC_RELEASE);
  }
}

void pm_limit_sequential(int32_t *counts, size_t n) {
  int32_t all = 0;
  for (size_t i = 0; i < n; i++) all |= __atomic_fetch_add(&counts[i], 1, __ATOMIC_RELAXED);
  sink = all;
}

void pm_limit_random(int32_t *counts, const uint32_t *indices, size_t n) {
  for (size_t i = 0; i < n; i++) __atomic_fetch_add(&counts[indices[i]], 1, __ATOMIC_RELAXED);
}

int pm_limit_reserve(size_t bytes) {
  void *base = mmap(0, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return -errno;
  return munmap(base, bytes) == 0 ? 0 : -errno;
}
