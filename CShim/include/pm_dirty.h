// Dirty logs: bitmaps of 64-bit words, and rings of 16-byte entries as `struct kvm_dirty_gfn`.
//
// In C because Swift cannot apply atomics to words of memory it does not declare, and because the
// order of each operation is part of its name. No policy lives here.
//
// pre (all): pointers are aligned to their type and point into a live bitmap or ring.
#ifndef PM_DIRTY_H
#define PM_DIRTY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pm_refcount.h"

/// Sets bits of a word and returns those that were not set before. Fully ordered: what the caller
/// wrote before is visible to whoever takes the bits out. A word that has the bits already is not
/// written, so that its cache line stays shared between the threads that mark it; the fence keeps
/// that look from passing the caller's earlier writes. Mirrors `set_bit_le` of `mark_page_dirty`.
PM_INLINE uint64_t pm_dirty_mark_seq_cst(uint64_t *_Nonnull word, uint64_t bits) {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  if ((__atomic_load_n(word, __ATOMIC_RELAXED) & bits) == bits) return 0;
  return bits & ~__atomic_fetch_or(word, bits, __ATOMIC_SEQ_CST);
}

/// Reads a word. Relaxed.
PM_INLINE uint64_t pm_dirty_load_relaxed(const uint64_t *_Nonnull word) {
  return __atomic_load_n(word, __ATOMIC_RELAXED);
}

/// Stores a word of a bitmap that nobody else can reach yet. Relaxed.
PM_INLINE void pm_dirty_store_relaxed(uint64_t *_Nonnull word, uint64_t value) {
  __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

/// Takes all bits out of a word and returns them. Fully ordered. Mirrors `xchg`.
PM_INLINE uint64_t pm_dirty_take_seq_cst(uint64_t *_Nonnull word) {
  return __atomic_exchange_n(word, 0, __ATOMIC_SEQ_CST);
}

/// Clears bits of a word and returns those that were set. Fully ordered.
/// Mirrors `atomic_long_fetch_andnot`.
PM_INLINE uint64_t pm_dirty_clear_seq_cst(uint64_t *_Nonnull word, uint64_t bits) {
  return bits & __atomic_fetch_and(word, ~bits, __ATOMIC_SEQ_CST);
}

/// The index of the first word from `from` on that is not 0, or `count`. Relaxed loads, eight words
/// for each branch: most of a log is clean. In C: the loads have to be atomic and cheap.
/// pre: `from` <= `count`, and `words` has `count` words.
PM_INLINE size_t pm_dirty_next_relaxed(const uint64_t *_Nonnull words, size_t from, size_t count) {
  size_t i = from;
  while (i + 8 <= count) {
    uint64_t any = 0;
    for (size_t k = 0; k < 8; k++) any |= __atomic_load_n(words + i + k, __ATOMIC_RELAXED);
    if (any != 0) break;
    i += 8;
  }
  while (i < count && __atomic_load_n(words + i, __ATOMIC_RELAXED) == 0) i++;
  return i;
}

/// An entry of a dirty ring. Same layout and meaning as `struct kvm_dirty_gfn`.
typedef struct pm_dirty_gfn {
  uint32_t flags;
  uint32_t slot;
  uint64_t offset;
} pm_dirty_gfn;

_Static_assert(sizeof(pm_dirty_gfn) == 16, "a ring entry is 16 bytes");
_Static_assert(offsetof(pm_dirty_gfn, offset) == 8, "the offset is the second word");

/// Reads an entry's flags: what was written before they were stored can be read after it. Acquire.
PM_INLINE uint32_t pm_dirty_gfn_flags_acquire(const pm_dirty_gfn *_Nonnull entry) {
  return __atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE);
}

/// Stores an entry's flags and with them hands the entry over. Release.
PM_INLINE void pm_dirty_gfn_set_flags_release(pm_dirty_gfn *_Nonnull entry, uint32_t flags) {
  __atomic_store_n(&entry->flags, flags, __ATOMIC_RELEASE);
}

/// Fills slot and offset of an entry that is not handed over yet. Relaxed.
PM_INLINE void pm_dirty_gfn_fill_relaxed(pm_dirty_gfn *_Nonnull entry, uint32_t slot,
                                         uint64_t offset) {
  __atomic_store_n(&entry->slot, slot, __ATOMIC_RELAXED);
  __atomic_store_n(&entry->offset, offset, __ATOMIC_RELAXED);
}

/// Reads an entry's slot. Relaxed: user space may write it at any time.
PM_INLINE uint32_t pm_dirty_gfn_slot_relaxed(const pm_dirty_gfn *_Nonnull entry) {
  return __atomic_load_n(&entry->slot, __ATOMIC_RELAXED);
}

/// Reads an entry's offset. Relaxed: user space may write it at any time.
PM_INLINE uint64_t pm_dirty_gfn_offset_relaxed(const pm_dirty_gfn *_Nonnull entry) {
  return __atomic_load_n(&entry->offset, __ATOMIC_RELAXED);
}

/// Clears `clear` in those of up to 64 entries that `mask` names and that hold all of `settled` and
/// nothing of `unsettled`; returns the bits of the entries that it left because they do not.
///
/// Plain loads and stores, relaxed: for entries that no other thread can change meanwhile, because all
/// that a processor or a fault without the lock would set in them is set already.
PM_INLINE uint64_t pm_sptes_clear_settled_relaxed(
    uint64_t *_Nonnull entries, uint64_t mask, uint64_t settled, uint64_t unsettled,
    uint64_t clear, uint64_t *_Nonnull changed) {
  uint64_t left = 0;
  uint64_t done = 0;
  for (unsigned index = 0; index < 64; index++) {
    uint64_t bit = (uint64_t)1 << index;
    if (!(mask & bit)) continue;
    uint64_t entry = __atomic_load_n(entries + index, __ATOMIC_RELAXED);
    if ((entry & (settled | unsettled)) == settled) {
      __atomic_store_n(entries + index, entry & ~clear, __ATOMIC_RELAXED);
      done |= bit;
    } else {
      left |= bit;
    }
  }
  *changed = done;
  return left;
}

#endif
