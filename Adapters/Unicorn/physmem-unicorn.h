/* physmem-unicorn.h: a machine's memory as the memory of a Unicorn engine.
 *
 * Header only, so that the library has no dependency: compile with `pkg-config --cflags --libs physmem unicorn`.
 * RAM, ROM and persistent regions are mapped whole by uc_mem_map_ptr: the engine runs code from the machine's memory
 * and its stores are there at once, for this library's functions, other engines, and processes that map the fd.
 * MMIO regions are mapped by uc_mmio_map, each access is one of pm_load and pm_store.
 *
 * An engine serves one thread at a time, as Unicorn has it; several engines may share a machine, but their atomic
 * instructions are not atomic with respect to each other.
 *
 * Works with Unicorn 2.0.1 and 2.1. Guest addresses are physical. In 2.0.1 stores of an x86 guest that has paging on
 * go to the physical address of the same number; 2.1 translates.
 *
 * Functions return 0 or a negative errno. C99 and C++.
 */
#ifndef PHYSMEM_UNICORN_H
#define PHYSMEM_UNICORN_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unicorn/unicorn.h>

#include "physmem.h"

#ifdef __cplusplus
extern "C" {
#endif

enum pm_uc_flags {
  /* The engine's stores are marked in the machine's dirty bitmap, by a hook in each of them. A harvest that is
   * to have all of them begins while the engine does not run. A store over a border of pages that the guest's page
   * tables do not map in sequence marks the first page only: Unicorn does not say where the second is. */
  PM_UC_TRACK_DIRTY = 1
};

/* Takes a uc_err: -EFAULT: no region; -EACCES: the region forbids it; -EEXIST: mapped already; -EIO: the rest. */
static inline int pm_uc_errno(uc_err error) {
  switch (error) {
    case UC_ERR_OK: return 0;
    case UC_ERR_NOMEM: return -ENOMEM;
    case UC_ERR_MAP: return -EEXIST;
    case UC_ERR_ARG: return -EINVAL;
    case UC_ERR_READ_UNMAPPED:
    case UC_ERR_WRITE_UNMAPPED:
    case UC_ERR_FETCH_UNMAPPED: return -EFAULT;
    case UC_ERR_READ_PROT:
    case UC_ERR_WRITE_PROT:
    case UC_ERR_FETCH_PROT: return -EACCES;
    default: return -EIO;
  }
}

struct pm_uc;

/* What is mapped: a region, or the pages around MMIO regions. */
struct pm_uc_window {
  struct pm_uc *owner;
  uint64_t gpa, len;
};

/* A machine's regions in an engine. The fields are the adapter's own. */
typedef struct pm_uc {
  pm_machine *machine;
  uc_engine *engine;
  uc_hook hook;
  uint32_t has_hook;
  uint32_t count; /* windows that are mapped */
  struct pm_uc_window *windows;
  int error; /* of the first access that the machine refused in this run */
} pm_uc;

static inline void pm_uc_stop(pm_uc *uc, int error) {
  if (uc->error == 0) uc->error = error;
  uc_emu_stop(uc->engine);
}

static inline uint64_t pm_uc_mmio_read(uc_engine *engine, uint64_t offset, unsigned width, void *opaque) {
  struct pm_uc_window *window = (struct pm_uc_window *)opaque;
  uint64_t value = 0;
  int result = pm_load(window->owner->machine, window->gpa + offset, width, &value);
  (void)engine;
  if (result != 0) pm_uc_stop(window->owner, result);
  return value;
}

static inline void pm_uc_mmio_write(
    uc_engine *engine, uint64_t offset, unsigned width, uint64_t value, void *opaque) {
  struct pm_uc_window *window = (struct pm_uc_window *)opaque;
  int result = pm_store(window->owner->machine, window->gpa + offset, width, value);
  (void)engine;
  if (result != 0) pm_uc_stop(window->owner, result);
}

static inline void pm_uc_store_hook(
    uc_engine *engine, uc_mem_type type, uint64_t gpa, int width, int64_t value, void *opaque) {
  pm_uc *uc = (pm_uc *)opaque;
  int result = pm_dirty_mark(uc->machine, gpa, (uint64_t)width);
  (void)engine, (void)type, (void)value;
  /* Anything else than that no record is kept would be a page that is lost. */
  if (result != 0 && result != -ENODATA) pm_uc_stop(uc, result);
}

/* Unicorn 2.0 keeps what it has translated over a change of mapping, and has no name of its own for forgetting. */
static inline int pm_uc_forget_code(pm_uc *uc) {
#ifdef uc_ctl_flush_tb
  return pm_uc_errno(uc_ctl_flush_tb(uc->engine));
#else
  return pm_uc_errno(uc_ctl_flush_tlb(uc->engine));
#endif
}

/* Unmaps what was mapped, and ends `uc`. Before the machine is closed or a region removed. */
static inline int pm_uc_detach(pm_uc *uc) {
  int result = 0;
  while (uc->count > 0) {
    struct pm_uc_window *window = &uc->windows[--uc->count];
    int unmapped = pm_uc_errno(uc_mem_unmap(uc->engine, window->gpa, (size_t)window->len));
    if (result == 0) result = unmapped;
  }
  int unhooked = uc->has_hook ? pm_uc_errno(uc_hook_del(uc->engine, uc->hook)) : 0;
  int forgotten = pm_uc_forget_code(uc);
  free(uc->windows);
  free(uc);
  return result != 0 ? result : unhooked != 0 ? unhooked : forgotten;
}

static inline int pm_uc_map_window(pm_uc *uc, const pm_region *region, uint64_t gpa, uint64_t len) {
  struct pm_uc_window *window = &uc->windows[uc->count];
  window->owner = uc;
  window->gpa = gpa;
  window->len = len;
  uc_err error;
  if (region->kind == PM_REGION_MMIO) {
    error = uc_mmio_map(
        uc->engine, gpa, (size_t)len, pm_uc_mmio_read, window, pm_uc_mmio_write, window);
  } else {
    /* The numbers of PM_PROT and UC_PROT are the same. */
    error = uc_mem_map_ptr(uc->engine, gpa, (size_t)len, region->prot & UC_PROT_ALL, region->hva);
  }
  if (error == UC_ERR_OK) uc->count++;
  return pm_uc_errno(error);
}

static inline int pm_uc_map(pm_uc *uc, const pm_region *regions, uint32_t count) {
  for (uint32_t i = 0; i < count;) {
    const pm_region *region = &regions[i++];
    uint64_t gpa = region->gpa & ~(uint64_t)4095;
    uint64_t end = (region->gpa + region->len + 4095) & ~(uint64_t)4095;
    /* Unicorn maps pages; devices that share one are one window, and the machine tells them apart. */
    while (region->kind == PM_REGION_MMIO && i < count && regions[i].kind == PM_REGION_MMIO
           && regions[i].gpa < end) {
      end = (regions[i].gpa + regions[i].len + 4095) & ~(uint64_t)4095;
      i++;
    }
    int result = pm_uc_map_window(uc, region, gpa, end - gpa);
    if (result != 0) return result;
  }
  return 0;
}

/* The machine's regions as of one moment; *regions is to be freed. */
static inline int pm_uc_list(pm_machine *machine, pm_region **regions, uint32_t *count) {
  uint32_t capacity = 16;
  *regions = NULL;
  for (;;) {
    pm_region *list = (pm_region *)realloc(*regions, capacity * sizeof **regions);
    if (list == NULL) return free(*regions), -ENOMEM;
    *regions = list;
    list[0].size = sizeof *list;
    *count = capacity;
    int result = pm_regions(machine, list, count);
    if (result == 0) return 0;
    if (result != -ENOBUFS) return free(list), result;
    capacity = *count;
  }
}

/* Maps all regions that the machine has now into the engine. For regions that come or go later: detach, then attach
 * again. After an error nothing is mapped. `flags`: enum pm_uc_flags.
 * -EEXIST: the engine has memory there already. -ENOMEM; errors of pm_regions. */
static inline int pm_uc_attach(pm_machine *machine, uc_engine *engine, uint32_t flags, pm_uc **attached) {
  pm_region *regions;
  uint32_t count;
  int result = pm_uc_list(machine, &regions, &count);
  if (result != 0) return result;
  pm_uc *uc = (pm_uc *)calloc(1, sizeof *uc);
  if (uc == NULL) return free(regions), -ENOMEM;
  uc->machine = machine;
  uc->engine = engine;
  uc->windows = (struct pm_uc_window *)calloc(count > 0 ? count : 1, sizeof *uc->windows);
  result = uc->windows == NULL ? -ENOMEM : pm_uc_map(uc, regions, count);
  free(regions);
  if (result == 0 && (flags & PM_UC_TRACK_DIRTY) != 0) {
    /* Unicorn takes the function as a void *, to which ISO C has no conversion. An end before the begin: every
     * address. */
    uc_cb_hookmem_t hook = pm_uc_store_hook;
    void *callback;
    memcpy(&callback, &hook, sizeof callback);
    result = pm_uc_errno(uc_hook_add(engine, &uc->hook, UC_HOOK_MEM_WRITE, callback, uc, 1, 0));
    uc->has_hook = result == 0;
  }
  if (result == 0) result = pm_uc_forget_code(uc);
  if (result != 0) return pm_uc_detach(uc), result;
  *attached = uc;
  return 0;
}

/* uc_emu_start, whose arguments these are. An access that the machine refuses stops the engine at its instruction and
 * is returned: a device's errno, -EFAULT between devices (pm_last_error has the text); else the engine's error,
 * as pm_uc_errno has it (uc_errno has the engine's own). */
static inline int pm_uc_run(pm_uc *uc, uint64_t begin, uint64_t until, uint64_t microseconds, size_t instructions) {
  uc->error = 0;
  uc_err error = uc_emu_start(uc->engine, begin, until, microseconds, instructions);
  return uc->error != 0 ? uc->error : pm_uc_errno(error);
}

/* To be called when code that the engine may have run was changed from outside of it, and the engine does not run:
 * it has translated that code, and does not see the change otherwise. (What its own stores change, it sees.) */
static inline int pm_uc_code_changed(pm_uc *uc, uint64_t gpa, uint64_t len) {
#ifdef uc_ctl_flush_tb
  /* uc_ctl_remove_cache takes the guest's virtual addresses, which are others here. */
  return (void)gpa, (void)len, pm_uc_forget_code(uc);
#else
  return pm_uc_errno(uc_ctl_remove_cache(uc->engine, gpa, gpa + len));
#endif
}

/* Writes code into RAM or ROM: pm_rom_write, then pm_uc_code_changed. */
static inline int pm_uc_write_code(pm_uc *uc, uint64_t gpa, const void *code, size_t len) {
  int result = pm_rom_write(uc->machine, gpa, code, len);
  return result != 0 ? result : pm_uc_code_changed(uc, gpa, len);
}

#ifdef __cplusplus
}
#endif

#endif
