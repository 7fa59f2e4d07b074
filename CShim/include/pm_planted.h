// Bugs on purpose: what `physmem stress` has to find.
//
// Only a build with PM_PLANTED_BUGS defined has them (`make test-planted`); in every other one the
// test is a constant, and the compiler drops it with what depends on it. One bug at a time is active:
// the one that PHYSMEM_PLANTED names when the process starts.
#ifndef PM_PLANTED_H
#define PM_PLANTED_H

#include <stdbool.h>

#define PM_PLANTED_INLINE static inline __attribute__((always_inline))

typedef enum pm_planted_bug {
  PM_PLANTED_NONE,
  /// A get reads and writes the count in two steps.
  PM_PLANTED_GET_NOT_ATOMIC,
  /// A try-get takes a page whose count is 0.
  PM_PLANTED_TRYGET_FROM_ZERO,
  /// A freeze does not compare.
  PM_PLANTED_FREEZE_IGNORES_COUNT,
  /// The split of a block that somebody else holds loses the largest piece.
  PM_PLANTED_SPLIT_LOSES_HALF,
  /// A drain of a CPU's lists loses blocks.
  PM_PLANTED_DRAIN_LOSES_BLOCK,
  /// A zap ends a page too early.
  PM_PLANTED_ZAP_SKIPS_LAST,
  /// A fault does not look whether an invalidation came between.
  PM_PLANTED_RETRY_LEFT_OUT,
  /// A notifier does not wait for the vCPUs.
  PM_PLANTED_FLUSH_LEFT_OUT,
  /// Copy on write gives an empty page.
  PM_PLANTED_COW_NOT_COPIED,
  /// A deleted slot leaves its entries.
  PM_PLANTED_DELETE_KEEPS_ENTRIES,
  /// The fast page fault does not log.
  PM_PLANTED_FAST_FAULT_NOT_LOGGED,
  /// A harvest does not protect again.
  PM_PLANTED_HARVEST_NOT_PROTECTED,
  /// Migration moves pages that others hold.
  PM_PLANTED_MIGRATION_IGNORES_COUNT,
  /// mprotect does not tell the notifiers.
  PM_PLANTED_PROTECT_NOT_NOTIFIED,
  PM_PLANTED_END
} pm_planted_bug;

#ifdef PM_PLANTED_BUGS
extern pm_planted_bug pm_planted_active;
/// Whether a bug is to show.
PM_PLANTED_INLINE bool pm_planted(pm_planted_bug bug) { return pm_planted_active == bug; }
#else
/// Whether a bug is to show: never, in this build.
PM_PLANTED_INLINE bool pm_planted(pm_planted_bug bug) {
  (void)bug;
  return false;
}
#endif

#endif
