#include "pm_planted.h"

#ifdef PM_PLANTED_BUGS
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

pm_planted_bug pm_planted_active = PM_PLANTED_NONE;

static const char *const names[PM_PLANTED_END] = {
    [PM_PLANTED_GET_NOT_ATOMIC] = "get-not-atomic",
    [PM_PLANTED_TRYGET_FROM_ZERO] = "tryget-from-zero",
    [PM_PLANTED_FREEZE_IGNORES_COUNT] = "freeze-ignores-count",
    [PM_PLANTED_SPLIT_LOSES_HALF] = "split-loses-half",
    [PM_PLANTED_DRAIN_LOSES_BLOCK] = "drain-loses-block",
    [PM_PLANTED_ZAP_SKIPS_LAST] = "zap-skips-last",
    [PM_PLANTED_RETRY_LEFT_OUT] = "retry-left-out",
    [PM_PLANTED_FLUSH_LEFT_OUT] = "flush-left-out",
    [PM_PLANTED_COW_NOT_COPIED] = "cow-not-copied",
    [PM_PLANTED_DELETE_KEEPS_ENTRIES] = "delete-keeps-entries",
    [PM_PLANTED_FAST_FAULT_NOT_LOGGED] = "fast-fault-not-logged",
    [PM_PLANTED_HARVEST_NOT_PROTECTED] = "harvest-not-protected",
    [PM_PLANTED_MIGRATION_IGNORES_COUNT] = "migration-ignores-count",
    [PM_PLANTED_PROTECT_NOT_NOTIFIED] = "protect-not-notified",
};

// Before main: no thread reads the choice while it is made.
__attribute__((constructor)) static void choose(void) {
  const char *wanted = getenv("PHYSMEM_PLANTED");
  if (wanted == NULL || *wanted == 0) return;
  for (int bug = PM_PLANTED_NONE + 1; bug < PM_PLANTED_END; bug++) {
    if (strcmp(names[bug], wanted) == 0) {
      pm_planted_active = (pm_planted_bug)bug;
      return;
    }
  }
  fprintf(stderr, "PHYSMEM_PLANTED: no bug '%s'; there are:", wanted);
  for (int bug = PM_PLANTED_NONE + 1; bug < PM_PLANTED_END; bug++) {
    fprintf(stderr, " %s", names[bug]);
  }
  fputc('\n', stderr);
  exit(64);
}
#else
// ISO C wants a declaration in every file.
typedef int pm_planted_nothing;
#endif
