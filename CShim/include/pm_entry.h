// The words of page tables: 64 bits, read without a lock, changed under one or by
// compare-and-exchange.
//
// In C because Swift's own atomics cannot stand in a table of plain words.
#ifndef PM_ENTRY_H
#define PM_ENTRY_H

#include <stdbool.h>
#include <stdint.h>

#include "pm_refcount.h"

/// Reads an entry. Acquire: pairs with the store that published the table or page behind it.
PM_INLINE uint64_t pm_entry_load_acquire(const uint64_t *_Nonnull entry) {
  return __atomic_load_n(entry, __ATOMIC_ACQUIRE);
}

/// Writes an entry. Release: what it leads to is complete.
PM_INLINE void pm_entry_store_release(uint64_t *_Nonnull entry, uint64_t value) {
  __atomic_store_n(entry, value, __ATOMIC_RELEASE);
}

/// Replaces an entry; returns the old one. Acquire and release. Mirrors `ptep_get_and_clear`.
PM_INLINE uint64_t pm_entry_exchange_acq_rel(uint64_t *_Nonnull entry, uint64_t value) {
  return __atomic_exchange_n(entry, value, __ATOMIC_ACQ_REL);
}

/// Replaces an entry if it is `expected`; true iff it was. Acquire and release.
PM_INLINE bool pm_entry_replace_acq_rel(uint64_t *_Nonnull entry, uint64_t expected,
                                        uint64_t value) {
  return __atomic_compare_exchange_n(entry, &expected, value, false, __ATOMIC_ACQ_REL,
                                     __ATOMIC_ACQUIRE);
}

/// Adds to a counter and returns the new value. Fully ordered.
PM_INLINE int64_t pm_counter_add_seq_cst(int64_t *_Nonnull counter, int64_t delta) {
  return __atomic_add_fetch(counter, delta, __ATOMIC_SEQ_CST);
}

/// Reads a counter. Fully ordered.
PM_INLINE int64_t pm_counter_load_seq_cst(const int64_t *_Nonnull counter) {
  return __atomic_load_n(counter, __ATOMIC_SEQ_CST);
}

#endif
