// The physical limits that benchmarks are set against: the same work in plain C.
//
// In C because that is the point: what the processor needs for it, with no Swift around it.
#ifndef PM_LIMITS_H
#define PM_LIMITS_H

#include <stddef.h>
#include <stdint.h>

/// `n` times: add 1 to a word, subtract 1 and test for 0. The unit L of all allocator bars.
void pm_limit_pair(int32_t *_Nonnull count, size_t n);
/// `n` times: add 1 unless it is 0, subtract 1 and test for 0.
void pm_limit_tryget(int32_t *_Nonnull count, size_t n);
/// `n` times: exchange 1 for 0, store 1 with release order.
void pm_limit_freeze(int32_t *_Nonnull count, size_t n);
/// Adds 1 to each of `n` adjacent words with an exchange-add.
void pm_limit_sequential(int32_t *_Nonnull counts, size_t n);
/// Adds 1 to each listed word.
void pm_limit_random(int32_t *_Nonnull counts, const uint32_t *_Nonnull indices, size_t n);
/// Reserves address space of this size and gives it back. Returns 0 or -errno.
int pm_limit_reserve(size_t bytes);

#endif
