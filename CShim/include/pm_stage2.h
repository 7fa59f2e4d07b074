// The words of stage-2 tables: 64-bit entries in tables of 512.
//
// In C because Swift cannot apply atomics to words of a table it does not declare, and because the
// order of each operation is part of its name. What the bits mean is written in Swift (`SPTE`).
//
// pre (all): `slot` points to a word of a table that is not recycled while the call lasts.
#ifndef PM_STAGE2_H
#define PM_STAGE2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pm_refcount.h"

/// The page frame of a leaf, or the address of the next table (bits 12 to 51).
#define PM_SPTE_ADDRESS 0x000ffffffffff000ull

/// Reads an entry. Acquire: the contents of a table that it names are visible afterwards.
PM_INLINE uint64_t pm_spte_load_acquire(const uint64_t *_Nonnull slot) {
  return __atomic_load_n(slot, __ATOMIC_ACQUIRE);
}

/// Stores an entry. Release; for one that no other thread may change now. Mirrors
/// `__kvm_tdp_mmu_write_spte`, Linux 6.1.
PM_INLINE void pm_spte_store_release(uint64_t *_Nonnull slot, uint64_t value) {
  __atomic_store_n(slot, value, __ATOMIC_RELEASE);
}

/// Replaces an entry and returns the old one. Fully ordered. Mirrors
/// `kvm_tdp_mmu_write_spte_atomic`, Linux 6.1.
PM_INLINE uint64_t pm_spte_exchange_seq_cst(uint64_t *_Nonnull slot, uint64_t value) {
  return __atomic_exchange_n(slot, value, __ATOMIC_SEQ_CST);
}

/// Replaces an entry if it is `expected`; returns what was there, which is `expected` iff it was
/// replaced. Fully ordered on success, acquire on failure. Mirrors the exchange of
/// `tdp_mmu_set_spte_atomic`, Linux 6.1.
PM_INLINE uint64_t pm_spte_compare_exchange_seq_cst(uint64_t *_Nonnull slot, uint64_t expected,
                                                    uint64_t value) {
  __atomic_compare_exchange_n(slot, &expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE);
  return expected;
}

/// Puts `value` into an entry that is 0; true iff it was. Fully ordered on success.
PM_INLINE bool pm_spte_install_seq_cst(uint64_t *_Nonnull slot, uint64_t value) {
  uint64_t expected = 0;
  return __atomic_compare_exchange_n(slot, &expected, value, false, __ATOMIC_SEQ_CST,
                                     __ATOMIC_RELAXED);
}

/// The table that an entry names. In C: Swift makes an optional of every address.
/// pre: the entry is present and no leaf.
PM_INLINE uint64_t *_Nonnull pm_spte_table(uint64_t entry) {
  return (uint64_t *)(uintptr_t)(entry & PM_SPTE_ADDRESS);
}

/// Adds 1 to a counter. Relaxed.
PM_INLINE void pm_stage2_count_inc_relaxed(int64_t *_Nonnull counter) {
  __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
}
/// Subtracts 1 from a counter. Relaxed.
PM_INLINE void pm_stage2_count_dec_relaxed(int64_t *_Nonnull counter) {
  __atomic_fetch_sub(counter, 1, __ATOMIC_RELAXED);
}
/// Adds `delta` to a counter. Relaxed.
PM_INLINE void pm_stage2_count_add_relaxed(int64_t *_Nonnull counter, int64_t delta) {
  __atomic_fetch_add(counter, delta, __ATOMIC_RELAXED);
}
/// Reads a counter. Relaxed.
PM_INLINE int64_t pm_stage2_count_load_relaxed(const int64_t *_Nonnull counter) {
  return __atomic_load_n(counter, __ATOMIC_RELAXED);
}
/// Reads a generation. Acquire: pairs with the release of pm_stage2_generation_renew.
PM_INLINE uint64_t pm_stage2_generation_load_acquire(const uint64_t *_Nonnull generation) {
  return __atomic_load_n(generation, __ATOMIC_ACQUIRE);
}

/// Gives the generation a value that no other word has or had in this process. Release.
/// In C because the source of the values is one atomic word of the process.
void pm_stage2_generation_renew(uint64_t *_Nonnull generation)
    __attribute__((visibility("hidden")));

/// Whether `n` entries are all 0. In C: a wide read of words that other threads may change, see the
/// source file.
bool pm_sptes_are_zero(const uint64_t *_Nonnull slots, size_t n)
    __attribute__((visibility("hidden")));

/// Stores `first`, `first` + 2^`shift`, `first` + 2 * 2^`shift`, ... into `n` entries. Each is
/// stored whole; relaxed. In C: wide stores of words that other threads may read, see the source
/// file.
/// pre: no other thread changes them meanwhile.
void pm_sptes_fill(uint64_t *_Nonnull slots, size_t n, uint64_t first, unsigned shift)
    __attribute__((visibility("hidden")));

#endif
