// The seam of pm_host.h as the files that enter the system see it; not part of the module.
#ifndef PM_SEAM_H
#define PM_SEAM_H

#include <errno.h>

#include "pm_host.h"

#pragma GCC visibility push(hidden)

// Counts a call; returns 0, or the negated error that the call shall fail with.
int pm_host_fault(pm_host_call call);

// Change the counts of what is live, in the whole process and for the calling thread.
void pm_count_mappings(int64_t change);
void pm_count_fds(int64_t change);

#pragma GCC visibility pop

// Makes a call that returns -1 with errno, through the seam and again after EINTR. Yields its
// result or -errno.
#define PM_SYSTEM_CALL(call, expression)         \
  ({                                             \
    intptr_t pm_result;                          \
    do {                                         \
      pm_result = pm_host_fault(call);           \
      if (pm_result == 0) {                      \
        pm_result = (intptr_t)(expression);      \
        if (pm_result == -1) pm_result = -errno; \
      }                                          \
    } while (pm_result == -EINTR);               \
    pm_result;                                   \
  })

#endif
