// The flat records of a machine, and the few accesses to them that Swift cannot express.
//
// In C because their layout is the point: which fields share a cache line, what is copied by a
// snapshot, what the C ABI and other processes may map. No policy lives here. Records hold no
// pointers, so that a copy of them is a copy of the machine's state.
#ifndef PM_LAYOUT_H
#define PM_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pm_refcount.h"

#define PM_CACHE_LINE 64

/// A link of the doubly linked lists of blocks. Both words are stored as differences: `next` to the
/// frame 1024 above, `prev` to the frame 1024 below. All zero therefore means "my neighbours are the
/// adjacent blocks of the highest order", which is how untouched memory is linked without a write.
typedef struct pm_link {
  uint32_t next;
  uint32_t prev;
} pm_link;

/// A run of frames that belong to one zone. Segments are disjoint and sorted.
typedef struct pm_segment {
  uint32_t start;
  uint32_t count;
  uint32_t zone;
  uint32_t reserved;
} pm_segment;

/// A zone. Mirrors the fields of `struct zone` that decide which page is chosen.
typedef struct pm_zone {
  // Lines 0 and 1: the lock and what its holder writes. An allocation from per-CPU lists reads none of
  // it: it would take the line from the holder again and again.
  uint32_t lock;
  uint32_t nr_isolate_pageblock;
  uint16_t nonempty[5];
  uint16_t reserved0;
  uint32_t nr_free[11];
  int64_t nr_free_pages;
  int64_t watermark_boost;
  int64_t nr_reserved_highatomic;
  uint64_t reserved1[5];
  // Lines 2 and 3: set at creation or seldom. `roomy` says whether the free counter is above
  // `roomy_above`, from where on no watermark test fails for want of free frames, whatever the request.
  uint32_t roomy;
  uint32_t flags;
  int64_t roomy_above;
  int64_t watermark[4];
  int64_t lowmem_reserve[5];
  uint64_t managed_pages;
  uint64_t present_pages;
  uint32_t start;
  uint32_t spanned;
  int32_t list_base;
  uint16_t node;
  uint16_t kind;
  uint16_t index;
  uint16_t reserved2;
  uint32_t drift_mark;
  uint32_t contiguous;
  uint32_t reserved3[15];
} pm_zone;

/// A CPU's lists and counters for one zone, touched by that CPU's thread only.
/// Mirrors `struct per_cpu_pages` and the CPU's part of the zone's vmstat.
typedef struct pm_pageset {
  int32_t count;
  int32_t high;
  int32_t batch;
  int16_t free_factor;
  int16_t expire;
  int32_t stat_diff;
  int32_t stat_threshold;
  int32_t list_base;
  uint32_t zone;
  // Where the next freed single frame is noted, see Core.hints.
  uint32_t hint_top;
  uint32_t reserved0[7];
} pm_pageset;

/// A node's wake-up targets for kswapd. Mirrors `kswapd_order`, `kswapd_highest_zoneidx`.
typedef struct pm_node {
  uint32_t kswapd_order;
  uint32_t kswapd_highest_zoneidx;
  uint32_t kswapd_failures;
  uint32_t start;
  uint64_t spanned_pages;
  uint64_t present_pages;
} pm_node;

_Static_assert(sizeof(pm_link) == 8, "a link is two 32-bit words");
_Static_assert(sizeof(pm_zone) == 5 * PM_CACHE_LINE, "a zone is five cache lines");
_Static_assert(offsetof(pm_zone, nr_free_pages) == PM_CACHE_LINE, "line 1 starts with the counter");
_Static_assert(offsetof(pm_zone, roomy) == 2 * PM_CACHE_LINE, "line 2 is read-mostly");
_Static_assert(sizeof(pm_pageset) == PM_CACHE_LINE, "a pageset is one cache line");

/// The mask of orders with a non-empty list, for one migratetype. In C: fixed arrays import as tuples.
PM_INLINE uint16_t *_Nonnull pm_zone_nonempty(pm_zone *_Nonnull zone) { return zone->nonempty; }
/// The watermarks MIN, LOW, HIGH, PROMO, without the boost.
PM_INLINE int64_t *_Nonnull pm_zone_watermark(pm_zone *_Nonnull zone) { return zone->watermark; }
/// The reserve against requests by their highest zone index.
PM_INLINE int64_t *_Nonnull pm_zone_lowmem_reserve(pm_zone *_Nonnull zone) {
  return zone->lowmem_reserve;
}
/// Blocks per order.
PM_INLINE uint32_t *_Nonnull pm_zone_nr_free(pm_zone *_Nonnull zone) { return zone->nr_free; }

/// Reads a word that is written under a zone's lock, without the lock. Relaxed.
PM_INLINE int64_t pm_counter_load_relaxed(const int64_t *_Nonnull counter) {
  return __atomic_load_n(counter, __ATOMIC_RELAXED);
}
/// Stores such a word; pre: the zone's lock is held. Relaxed.
PM_INLINE void pm_counter_store_relaxed(int64_t *_Nonnull counter, int64_t value) {
  __atomic_store_n(counter, value, __ATOMIC_RELAXED);
}
/// The same for a 32-bit word.
PM_INLINE uint32_t pm_word_load_relaxed(const uint32_t *_Nonnull word) {
  return __atomic_load_n(word, __ATOMIC_RELAXED);
}
/// The same for a 32-bit word.
PM_INLINE void pm_word_store_relaxed(uint32_t *_Nonnull word, uint32_t value) {
  __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

/// A frame's state word: read by anyone (a merge looks at its buddy, a lookup at a tail), written
/// by whoever owns the frame or, for the buddy mark, under the zone's lock. Relaxed.
PM_INLINE uint16_t pm_state_load_relaxed(const uint16_t *_Nonnull state) {
  return __atomic_load_n(state, __ATOMIC_RELAXED);
}
/// Stores a frame's state word. Relaxed.
PM_INLINE void pm_state_store_relaxed(uint16_t *_Nonnull state, uint16_t value) {
  __atomic_store_n(state, value, __ATOMIC_RELAXED);
}
/// A pageblock's migratetype: read without a lock, written under the zone's. Relaxed.
PM_INLINE uint8_t pm_pageblock_load_relaxed(const uint8_t *_Nonnull type) {
  return __atomic_load_n(type, __ATOMIC_RELAXED);
}
/// Stores a pageblock's migratetype; pre: the zone's lock is held. Relaxed.
PM_INLINE void pm_pageblock_store_relaxed(uint8_t *_Nonnull type, uint8_t value) {
  __atomic_store_n(type, value, __ATOMIC_RELAXED);
}
/// Sets or clears bits of a pageblock's marks; any thread may. Fully ordered: a mark is set after the
/// count it speaks of and cleared before the counts are read, so that none is lost between.
PM_INLINE void pm_marks_set(uint8_t *_Nonnull marks, uint8_t bits) {
  __atomic_fetch_or(marks, bits, __ATOMIC_SEQ_CST);
}
/// See above.
PM_INLINE void pm_marks_clear(uint8_t *_Nonnull marks, uint8_t bits) {
  __atomic_fetch_and(marks, (uint8_t)~bits, __ATOMIC_SEQ_CST);
}
/// Reads a tail's head link without a lock. Relaxed.
PM_INLINE uint32_t pm_link_next_load_relaxed(const pm_link *_Nonnull link) {
  return __atomic_load_n(&link->next, __ATOMIC_RELAXED);
}
/// Stores a tail's head link. Relaxed.
PM_INLINE void pm_link_next_store_relaxed(pm_link *_Nonnull link, uint32_t value) {
  __atomic_store_n(&link->next, value, __ATOMIC_RELAXED);
}

/// Both words of a link as one number, `next` in the low half.
PM_INLINE uint64_t pm_link_word(const pm_link *_Nonnull link) {
  uint64_t word;
  __builtin_memcpy(&word, link, sizeof word);
  return word;
}
/// Stores both words at once. Relaxed; pre: the link is aligned to 8 bytes.
PM_INLINE void pm_link_word_store_relaxed(pm_link *_Nonnull link, uint64_t word) {
  __atomic_store_n((uint64_t *)(void *)link, word, __ATOMIC_RELAXED);
}
/// The same from two words.
PM_INLINE void pm_link_store_relaxed(pm_link *_Nonnull link, pm_link value) {
  pm_link_word_store_relaxed(link, pm_link_word(&value));
}

/// Takes the lock. Acquire. Spins, then yields the processor: the holder may be preempted.
void pm_lock_contended(uint32_t *_Nonnull lock) __attribute__((visibility("hidden")));
PM_INLINE void pm_lock_acquire(uint32_t *_Nonnull lock) {
  if (__builtin_expect(__atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE) != 0, 0))
    pm_lock_contended(lock);
}
/// Gives the lock back. Release.
PM_INLINE void pm_lock_release(uint32_t *_Nonnull lock) {
  __atomic_store_n(lock, 0, __ATOMIC_RELEASE);
}

/// What a sweep over frames saw: in the low 16 bits the bitwise or of their state words, above them
/// whether any count is not 0.
#define PM_SWEEP_COUNT 0x10000u

/// Sweeps the states and counts of `n` frames. In C: a wide read of words that other threads may read
/// or raise meanwhile, which is a race only in name (see the callers), and has to be told so to
/// ThreadSanitizer. pre: the range lies in both tables.
uint32_t pm_frames_sweep(const uint16_t *_Nonnull states, const int32_t *_Nonnull counts, size_t n)
    __attribute__((visibility("hidden")));
/// Whether in an aligned block of `n` frames, a power of 2 from 16 on, all counts are 0 and no state word but
/// the first frame's, which is not looked at, has a bit of `mask`.
bool pm_block_is_plain(const uint16_t *_Nonnull states, const int32_t *_Nonnull counts, size_t n,
                       uint16_t mask) __attribute__((visibility("hidden")));
/// The same for 16 frames, the most frequent of these blocks, in the place where it is called.
PM_INLINE bool pm_block16_is_plain(const uint16_t *_Nonnull states, const int32_t *_Nonnull counts,
                                   uint16_t mask) {
#ifdef PM_THREAD_SANITIZER
  return pm_block_is_plain(states, counts, 16, mask);
#else
  // In pieces of which two overlap, see pm_block_is_plain.
  typedef uint16_t pm_halves __attribute__((vector_size(16)));
  typedef uint64_t pm_pair __attribute__((vector_size(16)));
  pm_halves state, more;
  pm_pair seen, count[3];
  __builtin_memcpy(&state, states + 1, 16);
  __builtin_memcpy(&more, states + 8, 16);
  __builtin_memcpy(&seen, counts + 1, 16);
  __builtin_memcpy(count, counts + 4, 48);
  seen |= count[0] | count[1] | count[2] | (pm_pair)((state | more) & mask);
  return (seen[0] | seen[1]) == 0 && __atomic_load_n(counts, __ATOMIC_RELAXED) == 0;
#endif
}
/// As `pm_frames_sweep`, where count `i` is the word `i << shift`.
uint32_t pm_frames_sweep_strided(const uint16_t *_Nonnull states, const int32_t *_Nonnull counts,
                                 size_t n, uint32_t shift) __attribute__((visibility("hidden")));
/// Stores `value` in `n` state words. As above; the buddy mark is in neither old nor new value.
void pm_states_fill(uint16_t *_Nonnull states, size_t n, uint16_t value)
    __attribute__((visibility("hidden")));

#endif
