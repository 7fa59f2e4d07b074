// What only some pages have: flags beyond those of the state word, map counts, a mapping. And the
// few atomic accesses to them that Swift cannot express.
//
// In C because flags and map counts are changed by any thread that maps or marks a page, at any time.
#ifndef PM_DETAIL_H
#define PM_DETAIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pm_refcount.h"

/// The details of one page; all zero are those of a clean one.
typedef struct pm_detail {
  uint32_t flags;
  /// `_mapcount` + 1: how often the page is mapped by an entry of its own.
  int32_t mapped;
  /// How often a compound page is mapped as a whole. Of heads only.
  int32_t mapped_whole;
  /// Pins of a large folio (`_pincount`). Of heads only.
  int32_t pinned;
  uint64_t mapping;
  uint64_t memcg;
  /// `private`: the owner's word.
  uint64_t owner_word;
} pm_detail;

/// Sets bits; returns the old word. Relaxed: flags order nothing. Mirrors `set_bit` on page flags.
PM_INLINE uint32_t pm_flags_set_relaxed(uint32_t *_Nonnull flags, uint32_t bits) {
  return __atomic_fetch_or(flags, bits, __ATOMIC_RELAXED);
}

/// Clears bits; returns the old word. Relaxed.
PM_INLINE uint32_t pm_flags_clear_relaxed(uint32_t *_Nonnull flags, uint32_t bits) {
  return __atomic_fetch_and(flags, ~bits, __ATOMIC_RELAXED);
}

/// Reads a map or pin count. Relaxed.
PM_INLINE int32_t pm_mapcount_load_relaxed(const int32_t *_Nonnull count) {
  return __atomic_load_n(count, __ATOMIC_RELAXED);
}

/// Reads `mapping`, `memcg` or `owner_word`. Relaxed: who looks at a page that is not its own (LRU,
/// migration, reports) may see the word of before or after.
PM_INLINE uint64_t pm_detail_word_load_relaxed(const uint64_t *_Nonnull word) {
  return __atomic_load_n(word, __ATOMIC_RELAXED);
}

/// Writes `mapping`, `memcg` or `owner_word`. Relaxed.
PM_INLINE void pm_detail_word_store_relaxed(uint64_t *_Nonnull word, uint64_t value) {
  __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

/// Writes all of a page's details, field by field. Relaxed; of pages that the caller owns.
PM_INLINE void pm_detail_store_relaxed(pm_detail *_Nonnull to, pm_detail from) {
  __atomic_store_n(&to->flags, from.flags, __ATOMIC_RELAXED);
  __atomic_store_n(&to->mapped, from.mapped, __ATOMIC_RELAXED);
  __atomic_store_n(&to->mapped_whole, from.mapped_whole, __ATOMIC_RELAXED);
  __atomic_store_n(&to->pinned, from.pinned, __ATOMIC_RELAXED);
  __atomic_store_n(&to->mapping, from.mapping, __ATOMIC_RELAXED);
  __atomic_store_n(&to->memcg, from.memcg, __ATOMIC_RELAXED);
  __atomic_store_n(&to->owner_word, from.owner_word, __ATOMIC_RELAXED);
}

/// Reads the flags. Relaxed.
PM_INLINE uint32_t pm_flags_load_relaxed(const uint32_t *_Nonnull flags) {
  return __atomic_load_n(flags, __ATOMIC_RELAXED);
}

/// Adds to a map or pin count; returns the new count. Relaxed, as the kernel's are.
PM_INLINE int32_t pm_mapcount_add_return_relaxed(int32_t *_Nonnull count, int32_t delta) {
  return __atomic_add_fetch(count, delta, __ATOMIC_RELAXED);
}

/// Sets bits of a frame's state word; returns the old word. Relaxed.
PM_INLINE uint16_t pm_state_set_relaxed(uint16_t *_Nonnull state, uint16_t bits) {
  return __atomic_fetch_or(state, bits, __ATOMIC_RELAXED);
}

/// Clears bits of a frame's state word; returns the old word. Relaxed.
PM_INLINE uint16_t pm_state_clear_relaxed(uint16_t *_Nonnull state, uint16_t bits) {
  return __atomic_fetch_and(state, (uint16_t)~bits, __ATOMIC_RELAXED);
}

/// The details of a pageblock, or null where none of its pages ever had any. Acquire: pairs with the
/// publication, so that what is seen is zeroed.
PM_INLINE pm_detail *_Nullable pm_detail_block_acquire(
    pm_detail *_Nullable const *_Nonnull slot) {
  return __atomic_load_n(slot, __ATOMIC_ACQUIRE);
}

/// Publishes a pageblock's details if there are none yet; returns those that are there afterwards.
/// Release, acquire where another was first.
PM_INLINE pm_detail *_Nonnull pm_detail_block_publish(
    pm_detail *_Nullable *_Nonnull slot, pm_detail *_Nonnull block) {
  pm_detail *seen = NULL;
  if (__atomic_compare_exchange_n(slot, &seen, block, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
    return block;
  }
  return seen;
}

/// Links a published block into the list of all blocks: `next` is where the block names the one that
/// was first before it. Release: pairs with the owner's reading of the whole list at the end.
PM_INLINE void pm_detail_list_push(uint64_t *_Nonnull head, uint64_t *_Nonnull next,
                                   uint64_t block) {
  uint64_t seen = __atomic_load_n(head, __ATOMIC_RELAXED);
  do {
    *next = seen;
  } while (
      !__atomic_compare_exchange_n(head, &seen, block, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED));
}

/// The first block of the list, 0 where there is none. Acquire.
PM_INLINE uint64_t pm_detail_list_first(const uint64_t *_Nonnull head) {
  return __atomic_load_n(head, __ATOMIC_ACQUIRE);
}

#endif
