#include "pm_limits_stage2.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct pm_limit_radix {
  uint64_t *root;
  uint64_t *tables;
  size_t used;
  size_t capacity;
  _Alignas(64) int64_t count;
};

#define PRESENT 1ull

static volatile uint64_t kept;

void pm_limit_keep(uint64_t value) { kept = value; }

pm_limit_radix *pm_limit_radix_create(size_t tables) {
  pm_limit_radix *radix = aligned_alloc(64, sizeof *radix);
  if (radix == NULL) return NULL;
  size_t bytes = (tables * 4096 + 0x1fffff) & ~(size_t)0x1fffff;
  void *base = aligned_alloc(2 << 20, bytes);
  if (base == NULL) {
    free(radix);
    return NULL;
  }
  // As the tables of the subject: huge pages where the host has them.
  (void)madvise(base, bytes, MADV_HUGEPAGE);
  *radix = (pm_limit_radix){.tables = base, .used = 1, .capacity = tables};
  radix->root = radix->tables;
  memset(radix->root, 0, 4096);
  return radix;
}

void pm_limit_radix_destroy(pm_limit_radix *radix) {
  free(radix->tables);
  free(radix);
}

void pm_limit_radix_reset(pm_limit_radix *radix) {
  radix->used = 1;
  radix->count = 0;
  memset(radix->root, 0, 4096);
}

static uint64_t *take(pm_limit_radix *radix, bool zeroed) {
  if (radix->used == radix->capacity) abort();
  uint64_t *table = radix->tables + 512 * radix->used++;
  if (zeroed) memset(table, 0, 4096);
  return table;
}

static inline uint64_t *child(pm_limit_radix *radix, uint64_t *slot, bool zeroed) {
  uint64_t entry = __atomic_load_n(slot, __ATOMIC_ACQUIRE);
  if (__builtin_expect(entry == 0, 0)) {
    entry = (uint64_t)(uintptr_t)take(radix, zeroed) | PRESENT;
    uint64_t expected = 0;
    if (!__atomic_compare_exchange_n(slot, &expected, entry, false, __ATOMIC_SEQ_CST,
                                     __ATOMIC_ACQUIRE)) {
      radix->used--;
      entry = expected;
    }
  }
  return (uint64_t *)(uintptr_t)(entry & ~PRESENT);
}

static inline uint64_t *lowest(pm_limit_radix *radix, uint64_t gfn, bool zeroed) {
  uint64_t *table = child(radix, &radix->root[gfn >> 27 & 511], true);
  table = child(radix, &table[gfn >> 18 & 511], true);
  return child(radix, &table[gfn >> 9 & 511], zeroed);
}

size_t pm_limit_radix_map(pm_limit_radix *radix, uint64_t gfn, uint64_t pfn, size_t n) {
  size_t mapped = 0;
  for (size_t i = 0; i < n; i++) {
    uint64_t *slot = &lowest(radix, gfn + i, true)[(gfn + i) & 511];
    uint64_t expected = 0;
    if (__atomic_compare_exchange_n(slot, &expected, (pfn + i) << 12 | PRESENT, false,
                                    __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
      __atomic_fetch_add(&radix->count, 1, __ATOMIC_RELAXED);
      mapped++;
    }
  }
  return mapped;
}

static inline const uint64_t *find(const pm_limit_radix *radix, uint64_t gfn) {
  uint64_t entry = __atomic_load_n(&radix->root[gfn >> 27 & 511], __ATOMIC_ACQUIRE);
  if (entry == 0) return NULL;
  uint64_t *table = (uint64_t *)(uintptr_t)(entry & ~PRESENT);
  entry = __atomic_load_n(&table[gfn >> 18 & 511], __ATOMIC_ACQUIRE);
  if (entry == 0) return NULL;
  table = (uint64_t *)(uintptr_t)(entry & ~PRESENT);
  entry = __atomic_load_n(&table[gfn >> 9 & 511], __ATOMIC_ACQUIRE);
  if (entry == 0) return NULL;
  return (uint64_t *)(uintptr_t)(entry & ~PRESENT) + (gfn & 511);
}

size_t pm_limit_radix_unmap(pm_limit_radix *radix, uint64_t gfn, size_t n) {
  size_t unmapped = 0;
  for (size_t i = 0; i < n; i++) {
    uint64_t *slot = (uint64_t *)find(radix, gfn + i);
    if (slot != NULL && __atomic_exchange_n(slot, 0, __ATOMIC_SEQ_CST) != 0) {
      __atomic_fetch_sub(&radix->count, 1, __ATOMIC_RELAXED);
      unmapped++;
    }
  }
  return unmapped;
}

uint64_t pm_limit_radix_lookup(const pm_limit_radix *radix, uint64_t gfn, size_t n) {
  uint64_t sum = 0;
  for (size_t i = 0; i < n; i++) {
    const uint64_t *slot = find(radix, gfn + i);
    if (slot != NULL) sum += __atomic_load_n(slot, __ATOMIC_ACQUIRE);
  }
  return sum;
}

size_t pm_limit_radix_range(pm_limit_radix *radix, uint64_t gfn, uint64_t pfn, size_t n) {
  size_t done = 0;
  while (done < n) {
    size_t start = (gfn + done) & 511;
    size_t run = n - done < 512 - start ? n - done : 512 - start;
    uint64_t *slots = lowest(radix, gfn + done, run < 512) + start;
    uint64_t first = (pfn + done) << 12 | PRESENT;
    for (size_t i = 0; i < run; i++) slots[i] = first + (i << 12);
    __atomic_fetch_add(&radix->count, (int64_t)run, __ATOMIC_RELAXED);
    done += run;
  }
  return done;
}

uint64_t pm_limit_loads(const void *base, const uint32_t *offsets, size_t n) {
  uint64_t sum = 0;
  for (size_t i = 0; i < n; i++)
    sum += *(const volatile uint64_t *)(const void *)((const char *)base + offsets[i]);
  return sum;
}

void pm_limit_stores(void *base, const uint32_t *offsets, size_t n) {
  for (size_t i = 0; i < n; i++) {
    *(volatile uint64_t *)(void *)((char *)base + offsets[i]) = 7;
  }
}

uint64_t pm_limit_bisect(const uint64_t *starts, size_t count, const uint64_t *addresses, size_t n) {
  uint64_t sum = 0;
  for (size_t i = 0; i < n; i++) {
    size_t low = 0, high = count;
    while (high - low > 1) {
      size_t middle = (low + high) / 2;
      if (starts[middle] <= addresses[i]) {
        low = middle;
      } else {
        high = middle;
      }
    }
    sum += low + (addresses[i] - starts[low]);
  }
  return sum;
}
