// The limits of stage-2 tables and guest accesses: a plain radix table in C, and plain loads.
//
// Four levels of 512 entries and no more: no huge leaves, no access bits, no results to tell apart.
#ifndef PM_LIMITS_STAGE2_H
#define PM_LIMITS_STAGE2_H

#include <stddef.h>
#include <stdint.h>

/// A radix table with its own supply of tables.
typedef struct pm_limit_radix pm_limit_radix;

/// Makes an empty table that can have up to `tables` tables; null where there is no memory.
pm_limit_radix *_Nullable pm_limit_radix_create(size_t tables);
/// Frees it.
void pm_limit_radix_destroy(pm_limit_radix *_Nonnull radix);
/// Makes it empty: all tables but the root go back into the supply.
void pm_limit_radix_reset(pm_limit_radix *_Nonnull radix);
/// Maps `n` frames one by one, each by a walk from the root, a compare-and-exchange and an atomic
/// count. Returns how many were free before.
size_t pm_limit_radix_map(pm_limit_radix *_Nonnull radix, uint64_t gfn, uint64_t pfn, size_t n);
/// Unmaps `n` frames one by one: a walk, an exchange, a count. Returns how many were mapped.
size_t pm_limit_radix_unmap(pm_limit_radix *_Nonnull radix, uint64_t gfn, size_t n);
/// Looks `n` frames up in order and adds their entries up.
uint64_t pm_limit_radix_lookup(const pm_limit_radix *_Nonnull radix, uint64_t gfn, size_t n);
/// Maps `n` frames with one walk and one count per table, and plain stores. Returns how many.
size_t pm_limit_radix_range(pm_limit_radix *_Nonnull radix, uint64_t gfn, uint64_t pfn, size_t n);

/// Takes a value that is only computed to be timed.
void pm_limit_keep(uint64_t value);

/// Loads a word at each of `n` offsets from `base` and adds them up.
uint64_t pm_limit_loads(const void *_Nonnull base, const uint32_t *_Nonnull offsets, size_t n);

/// Stores 7 in a word at each of `n` offsets from `base`.
void pm_limit_stores(void *_Nonnull base, const uint32_t *_Nonnull offsets, size_t n);

/// Looks for each of `n` addresses by bisection among the ascending `starts`, of which the first is at or
/// below all of them, and adds up the index found and the distance to it.
uint64_t pm_limit_bisect(const uint64_t *_Nonnull starts, size_t count,
                         const uint64_t *_Nonnull addresses, size_t n);

#endif
