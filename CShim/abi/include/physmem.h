/* physmem.h: the physical memory of a Linux machine, for C and whatever can call C.
 *
 * Handles. A pm_machine, pm_cpu or pm_harvest is a name, never an address: the library looks it up in each
 * call. NULL and handles that were closed are refused with -EBADF, also where the number was given out
 * anew. A close lets calls that are under way in other threads finish; what they were reading stays until
 * then. Host addresses (hva) that were handed out end with the machine or the region.
 *
 * Threads. Every function may be called from any thread at any time, except that a pm_cpu and a
 * pm_harvest serve one thread at a time (-EBUSY for the second). No read, write, load, store or
 * translation takes a lock, so that a thread that dies in one leaves none held.
 *
 * Processes. In the child of a fork() a handle from before it gives -ECHILD; machines that the child opens
 * itself work, and it may use the hva of shared memory directly.
 *
 * Errors. Functions return 0 (or a count) or a negative errno. pm_last_error() has the sentence to it: for
 * a range, both ranges; for a resource, what is missing and how to get it. Beside what each function
 * names, all return -EBADF (handle), -EINVAL (NULL where a pointer is needed, a `size` that no version had) and, where
 * memory is made, -ENOMEM. Out-parameters are written on success only, unless said otherwise.
 *
 * Structs. The first field, `size`, is sizeof the struct as the caller was compiled; PM_*_INIT sets it with
 * every default. A later library accepts earlier sizes; fields and enumerators are only ever added at the
 * end, and no number changes while PM_ABI_VERSION stays.
 *
 * Addresses are guest physical (gpa), in bytes. A page frame number (pfn) is the gpa / 4096 of memory that
 * the machine was opened with. 64-bit Linux only.
 */
#ifndef PHYSMEM_H
#define PHYSMEM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The number of this ABI. The shared library of ABI 1 is libphysmem.so.0. */
#define PM_ABI_VERSION 1

#if defined(__GNUC__)
#define PM_API __attribute__((visibility("default")))
#else
#define PM_API
#endif

/* The ABI number of the library that is loaded: PM_ABI_VERSION where header and library belong together. */
PM_API uint32_t pm_abi_version(void);

/* The sentence to the last error of the calling thread, or "" if it had none. Valid until the thread's next
 * call that fails; never NULL; not to be freed. Successful calls leave it as it is. */
PM_API const char *pm_last_error(void);

/* ---- Machines ------------------------------------------------------------------------------------------ */

typedef struct pm_machine pm_machine;

enum pm_backing {
  PM_BACKING_MEMFD = 0,        /* a memory file, MAP_SHARED: other processes can map it */
  PM_BACKING_HUGETLB = 1,      /* the same in huge pages of the host's pool, see huge_page_size */
  PM_BACKING_ANONYMOUS = 2,    /* private memory; with huge_page_size from the host's pool */
  PM_BACKING_ANONYMOUS_THP = 3 /* private memory, transparent huge pages wherever there are some */
};

/* How KVM treats the pages that it maps (Linux versions). */
enum pm_kvm_model {
  PM_KVM_MODEL_DEFAULT = 0, /* PM_KVM_MODEL_A */
  PM_KVM_MODEL_A0 = 1,      /* up to 5.12 */
  PM_KVM_MODEL_A = 2,       /* 5.13 to 6.12 */
  PM_KVM_MODEL_B = 3,       /* the v7 series of July 2023 as posted */
  PM_KVM_MODEL_C = 4        /* from 6.13 */
};

/* What __free_pages does to a block that somebody else still references. */
enum pm_free_pages_model {
  PM_FREE_PAGES_DEFAULT = 0,              /* PM_FREE_PAGES_HEAD_READ_BEFORE_PUT */
  PM_FREE_PAGES_BEFORE_TAIL_FIX = 1,      /* before e320d3012d25: tails leak */
  PM_FREE_PAGES_HEAD_READ_AFTER_PUT = 2,  /* up to 462a8e08e0e6: CVE-2023-52739 */
  PM_FREE_PAGES_HEAD_READ_BEFORE_PUT = 3  /* since */
};

enum pm_refcount_layout {
  PM_REFCOUNT_LAYOUT_PACKED = 0, /* 4 bytes per count */
  PM_REFCOUNT_LAYOUT_STRIDED = 1 /* 64 bytes per count: a cache line each */
};

enum pm_open_flags {
  PM_OPEN_RESERVE = 1,  /* the host has to set the memory aside now */
  PM_OPEN_PC_LAYOUT = 2 /* memory above 3 GiB continues at 4 GiB, as on a PC */
};

typedef struct pm_options {
  uint32_t size;
  uint32_t backing;          /* enum pm_backing */
  uint64_t memory;           /* bytes: 4 MiB to 8 TiB, a multiple of the page size */
  uint64_t huge_page_size;   /* 0, 2 MiB or 1 GiB */
  int32_t numa_node;         /* the host's node that is to hold it; -1: any */
  uint32_t cpus;             /* 1 to 8192 */
  uint32_t flags;            /* enum pm_open_flags, or-ed */
  uint32_t kvm_model;        /* enum pm_kvm_model */
  uint32_t free_pages_model; /* enum pm_free_pages_model */
  uint32_t refcount_layout;  /* enum pm_refcount_layout */
} pm_options;

#define PM_OPTIONS_INIT {sizeof(pm_options), PM_BACKING_MEMFD, 0, 0, -1, 1, 0, 0, 0, 0}

/* Opens a machine of `memory` bytes with all else as PM_OPTIONS_INIT has it. As pm_open_options. */
PM_API int pm_open(uint64_t memory, pm_machine **machine);

/* Opens a machine: its memory, all zero and all free, as after boot.
 * -EINVAL: an option is out of range. -ENOMEM: the host has too little memory or too few huge pages.
 * -ENODEV: no such node. -EOPNOTSUPP: a page size that the backing cannot have. -EMFILE, -ENFILE. */
PM_API int pm_open_options(const pm_options *options, pm_machine **machine);

/* Closes a machine and gives its memory back. Its pm_cpu and pm_harvest handles end with it. */
PM_API int pm_close(pm_machine *machine);

/* Makes a copy of a machine as it is now: memory copy-on-write, regions, allocator, counts, dirty bits (none).
 * The parent's memory becomes private too: its fd no longer shows what it writes from then on, and
 * pm_regions gives -1 for it. Processes that mapped the fd must not write it any more. MMIO handlers stay
 * the same. The machine's CPUs must not be claimed: -EBUSY. */
PM_API int pm_fork(pm_machine *parent, pm_machine **child);

typedef struct pm_machine_info {
  uint32_t size;
  uint32_t cpus;
  uint32_t nodes;
  uint32_t regions;
  uint64_t memory;           /* bytes of RAM, ROM and persistent memory in regions */
  uint64_t frame_count;      /* pfns are below this */
  uint64_t ballooned;        /* bytes in the balloon */
  uint64_t resident;         /* bytes that the host has given to it so far */
  uint64_t finding_count;    /* what the modelled kernel would have reported, see pm_finding */
} pm_machine_info;

#define PM_MACHINE_INFO_INIT {sizeof(pm_machine_info), 0, 0, 0, 0, 0, 0, 0, 0}

PM_API int pm_machine_get_info(pm_machine *machine, pm_machine_info *info);

/* Writes finding `index`, one line, into `text` (ended by 0, cut where it is too long). Returns its length
 * without the 0. -ENOENT: there is no such finding. */
PM_API int pm_finding(pm_machine *machine, uint64_t index, char *text, size_t capacity);

/* ---- Regions ------------------------------------------------------------------------------------------- */

enum pm_region_kind {
  PM_REGION_RAM = 0,
  PM_REGION_ROM = 1,  /* the guest reads; the host writes by pm_rom_write */
  PM_REGION_MMIO = 2, /* each access is a call of a handler; no hva, no fd */
  PM_REGION_PMEM = 3  /* RAM whose contents are in a file that stays */
};

/* As PROT_READ and PROT_WRITE: what the guest may do. */
enum pm_protection { PM_PROT_READ = 1, PM_PROT_WRITE = 2, PM_PROT_EXEC = 4 };

/* A region as it is (pm_regions) or is to be (pm_region_add). */
typedef struct pm_region {
  uint32_t size;
  uint32_t kind;      /* enum pm_region_kind */
  uint64_t gpa;       /* a multiple of page_size */
  uint64_t len;       /* bytes, a multiple of page_size, not 0 */
  int32_t fd;         /* borrowed: valid as long as the region; -1 where private or MMIO */
  int32_t numa_node;  /* the host's node that holds it, -1: any */
  uint64_t fd_offset; /* where in fd the region begins */
  uint64_t page_size; /* 4096 or the size of a huge page: what can be given back, and alignment */
  uint32_t prot;      /* enum pm_protection, or-ed */
  uint32_t backing;   /* enum pm_backing */
  void *hva;          /* where this process has it; of RAM that physmem made, hva and gpa agree modulo 2 MiB; or NULL */
} pm_region;

#define PM_REGION_INIT {sizeof(pm_region), PM_REGION_RAM, 0, 0, -1, -1, 0, 4096, 0, PM_BACKING_MEMFD, NULL}

/* Lists the regions in ascending order of gpa, as of one moment. In: `regions[0].size` is the size of an
 * element, `*count` the capacity. Out: `*count` is how many there are, also with -ENOBUFS (too many: nothing
 * else is written). `regions` may be NULL with a count of 0. */
PM_API int pm_regions(pm_machine *machine, pm_region *regions, uint32_t *count);

/* How many regions have been added and removed so far. Whoever keeps host addresses of guest memory reads it
 * before pm_translate and again before each use: the same number says that no region has come or gone since. It
 * keeps no region alive. Lock-free. */
PM_API int pm_regions_generation(pm_machine *machine, uint64_t *generation);

/* Adds RAM, ROM or persistent memory while the machine runs: `region` says kind, gpa, len, numa_node and either
 * backing and page_size (fd -1: new zeroed memory) or fd and fd_offset (a file to map shared; the library
 * duplicates the fd). hva and prot are ignored.
 * Accesses that begin after the return see the region. -EEXIST: it overlaps a region (the text names both
 * ranges). -EINVAL: unaligned, empty, past 2^52, or the file is shorter. -ENOSPC: 4096 regions. */
PM_API int pm_region_add(pm_machine *machine, const pm_region *region);

/* Removes the region that begins at `gpa`, of any kind. When it returns no access by pm_read and the like
 * is in its memory, which is given back, and hva pointers into it are dead. (A device may still be called by
 * accesses that began before: see `release`.) A guest that still maps it
 * (KVM, vhost-user, Unicorn) must be told before. -ENOENT. -EBUSY: a pm_harvest is open. */
PM_API int pm_region_remove(pm_machine *machine, uint64_t gpa);

/* Writes into ROM (or any memory) from the host's side. As pm_write. */
PM_API int pm_rom_write(pm_machine *machine, uint64_t gpa, const void *data, size_t len);

/* ---- MMIO ---------------------------------------------------------------------------------------------- */

/* A device. `offset` counts from the region's start, `width` is 1, 2, 4 or 8 and `offset` a multiple of it.
 * A handler returns 0 or a negative errno, which the access then returns. It runs in the thread of the
 * access, may be entered by several threads at once, may call functions of this library, except that it must
 * not remove its own region. */
typedef struct pm_mmio_ops {
  uint32_t size;
  uint32_t reserved;
  int (*read)(void *opaque, uint64_t offset, uint32_t width, uint64_t *value);
  int (*write)(void *opaque, uint64_t offset, uint32_t width, uint64_t value);
  void (*release)(void *opaque); /* called once when no access can come any more; may be NULL */
} pm_mmio_ops;

#define PM_MMIO_OPS_INIT {sizeof(pm_mmio_ops), 0, NULL, NULL, NULL}

/* Adds a region whose accesses are calls of `ops` (copied). gpa and len are multiples of 8. A NULL read or
 * write refuses with -EACCES. Errors as pm_region_add; then `release` is not called. */
PM_API int pm_mmio_add(
    pm_machine *machine, uint64_t gpa, uint64_t len, const pm_mmio_ops *ops, void *opaque);

/* ---- Access -------------------------------------------------------------------------------------------- */

/* Copy bytes out of and into guest memory, across regions that touch. The whole range is checked first:
 * -EFAULT: a part lies in no region; -EACCES: a write touches ROM (both ranges are in the text; nothing was
 * copied). MMIO parts are handler calls of at most 8 bytes; where one refuses, what comes before it is done.
 * Other threads and the guest may write at the same time: bytes then arrive in any mixture. A len of 0 is
 * accepted at any gpa. */
PM_API int pm_read(pm_machine *machine, uint64_t gpa, void *data, size_t len);
PM_API int pm_write(pm_machine *machine, uint64_t gpa, const void *data, size_t len);
/* Writes `len` bytes of value `byte`. */
PM_API int pm_fill(pm_machine *machine, uint64_t gpa, uint8_t byte, uint64_t len);

/* One load or store of `width` bytes (1, 2, 4 or 8) in the host's byte order: one access of the processor where
 * it lies in one region and is aligned, else in pieces. Relaxed. Errors as pm_read; -EINVAL: another width. */
PM_API int pm_load(pm_machine *machine, uint64_t gpa, uint32_t width, uint64_t *value);
PM_API int pm_store(pm_machine *machine, uint64_t gpa, uint32_t width, uint64_t value);

/* Atomic with respect to every other processor, the guest's too: acquire load, release store, sequentially
 * consistent compare and exchange. RAM and persistent memory only, gpa a multiple of width (1, 2, 4 or 8).
 * -EINVAL: width or alignment. -EFAULT: no region. -EACCES: ROM (store, cas) or MMIO. */
PM_API int pm_atomic_load(pm_machine *machine, uint64_t gpa, uint32_t width, uint64_t *value);
PM_API int pm_atomic_store(pm_machine *machine, uint64_t gpa, uint32_t width, uint64_t value);
/* Stores `desired` if the value is `*expected` and returns 1; else writes what it found to `*expected` and
 * returns 0. */
PM_API int pm_atomic_cas(
    pm_machine *machine, uint64_t gpa, uint32_t width, uint64_t *expected, uint64_t desired);

/* Where `len` bytes from gpa are in this process, within one region. `prot` (enum pm_protection) is what
 * the caller will do. Writes through the address are not in the dirty bitmap: see pm_dirty_mark.
 * -EFAULT: not in one region. -EACCES: MMIO, or writing ROM. */
PM_API int pm_translate(pm_machine *machine, uint64_t gpa, uint64_t len, uint32_t prot, void **hva);

/* The other way round. -EFAULT: no region has this address. */
PM_API int pm_translate_host(pm_machine *machine, const void *hva, uint64_t *gpa);

/* ---- Dirty bitmap -------------------------------------------------------------------------------------- */

/* Begins (all clean) and ends the record of which 4096-byte pages of RAM and persistent memory were written
 * by this library's functions or marked. -EALREADY: it is so. -EBUSY (end): a harvest is open. */
PM_API int pm_dirty_enable(pm_machine *machine);
PM_API int pm_dirty_disable(pm_machine *machine);
/* Marks the pages that contain the range: for writes by hva, and by guests. -ENODATA: no record is kept. */
PM_API int pm_dirty_mark(pm_machine *machine, uint64_t gpa, uint64_t len);

/* A harvest in two phases: begin takes the bits out and holds them; copy the pages; then commit if the copies
 * are safe, or abort, which puts the bits back among those set meanwhile. A machine that is closed aborts. */
typedef struct pm_harvest pm_harvest;

/* -ENODATA: no record is kept. -EBUSY: a harvest is open. */
PM_API int pm_dirty_begin(pm_machine *machine, pm_harvest **harvest);
/* The number of pages that the harvest holds. */
PM_API int pm_dirty_count(pm_harvest *harvest, uint64_t *pages);
/* The next run of dirty pages from `*gpa` on: writes where it begins and its bytes, within one region.
 * Returns 1, or 0 if there is none. The loop:
 * gpa = 0; while (pm_dirty_next(h, &gpa, &len) == 1) { …; gpa += len; } */
PM_API int pm_dirty_next(pm_harvest *harvest, uint64_t *gpa, uint64_t *len);
/* Both end the handle. */
PM_API int pm_dirty_commit(pm_harvest *harvest);
PM_API int pm_dirty_abort(pm_harvest *harvest);

/* ---- Giving memory back -------------------------------------------------------------------------------- */

/* The range of RAM goes into the balloon: the host gets its pages at once, and they read as zero. deflate
 * takes the range out; its pages come back as they are touched. Repeating either is no error. gpa and len are
 * multiples of the region's page size, else -EINVAL; -EFAULT, -EACCES as pm_write; -EOPNOTSUPP for memory in a
 * file of the caller. */
PM_API int pm_balloon_inflate(pm_machine *machine, uint64_t gpa, uint64_t len);
PM_API int pm_balloon_deflate(pm_machine *machine, uint64_t gpa, uint64_t len);

typedef struct pm_merge_result {
  uint32_t size;
  uint32_t reserved;
  uint64_t scanned; /* pages looked at */
  uint64_t zero;    /* pages of zeroes given back */
  uint64_t merged;  /* pages that now share another's bytes, copied again at the first write */
  uint64_t freed;   /* bytes given back */
} pm_merge_result;

#define PM_MERGE_RESULT_INIT {sizeof(pm_merge_result), 0, 0, 0, 0, 0}

/* Lets equal pages share memory, as KSM does. Memory that other processes can map only gives its zero pages
 * back. Writers by this library wait meanwhile; writers by hva and guests must be at rest. `result` may be
 * NULL. */
PM_API int pm_merge(pm_machine *machine, pm_merge_result *result);

/* ---- Pages: the allocator and its reference counts ----------------------------------------------------- */

/* One CPU of the machine: allocation and freeing go through it. */
typedef struct pm_cpu pm_cpu;

/* -ENODEV: there is no such CPU. -EBUSY: it is claimed. */
PM_API int pm_cpu_claim(pm_machine *machine, uint32_t index, pm_cpu **cpu);
PM_API int pm_cpu_release(pm_cpu *cpu);

/* alloc_pages: 2^order frames (order 0 to 10), `gfp` as the bits of Linux 6.1, node -1: that of the CPU.
 * -ENOMEM; -EINVAL: order; -ENODEV: node. */
PM_API int pm_alloc_pages(pm_cpu *cpu, uint32_t order, uint32_t gfp, int32_t node, uint64_t *pfn);
/* __free_pages, put_page. What Linux would report as a bad page is a finding, not an error.
 * -EINVAL: no frame of the machine, or not the first of 2^order. */
PM_API int pm_free_pages(pm_cpu *cpu, uint64_t pfn, uint32_t order);
PM_API int pm_put_page(pm_cpu *cpu, uint64_t pfn);
/* get_page. */
PM_API int pm_get_page(pm_machine *machine, uint64_t pfn);
/* Adds a reference unless the count is 0 (try_get_page, folio_try_get): returns 1, or 0 if it is. */
PM_API int pm_try_get_page(pm_machine *machine, uint64_t pfn);
/* page_ref_count of this very frame. */
PM_API int pm_page_refcount(pm_machine *machine, uint64_t pfn, int32_t *count);

/* The counts in memory: that of pfn is the int32_t at base + (pfn - first_pfn) * stride. Read them with relaxed
 * atomic loads; they end with the machine. */
typedef struct pm_ref_table_info {
  uint32_t size;
  uint32_t stride;
  const void *base;
  uint64_t first_pfn;
  uint64_t count;
} pm_ref_table_info;

#define PM_REF_TABLE_INFO_INIT {sizeof(pm_ref_table_info), 0, NULL, 0, 0}

PM_API int pm_ref_table(pm_machine *machine, pm_ref_table_info *table);

/* Free page reporting, as virtio-balloon has it: gives the host the pages of free blocks of at least
 * 2^min_order frames (0 to 10), up to `max_bytes`. They stay free, and read as zero.
 * Writes how many bytes were given. */
PM_API int pm_report_free_pages(
    pm_cpu *cpu, uint32_t min_order, uint64_t max_bytes, uint64_t *reported);

/* ---- Guests -------------------------------------------------------------------------------------------- */

enum pm_kvm_flags { PM_KVM_LOG_DIRTY_PAGES = 1 /* KVM_MEM_LOG_DIRTY_PAGES in each slot */ };

/* Makes each RAM, ROM and persistent region a memslot of the VM `vm_fd` (of this process), numbered from
 * `first_slot` in ascending order of gpa; ROM with KVM_MEM_READONLY. Returns how many. A region added later is
 * not mapped by itself. After an error no slot of the call is left.
 * -EEXIST: a slot overlaps one of the VM. -EINVAL, -ENOTTY: not a VM. */
PM_API int pm_map_kvm(pm_machine *machine, int vm_fd, uint32_t first_slot, uint32_t flags);
/* Deletes the slots that pm_map_kvm made from `first_slot` on in this VM. -ENOENT: there are none. */
PM_API int pm_unmap_kvm(pm_machine *machine, int vm_fd, uint32_t first_slot);
/* Takes KVM's dirty log of those slots and adds it to the machine's dirty bitmap. -ENODATA: none is kept. */
PM_API int pm_collect_kvm(pm_machine *machine, int vm_fd, uint32_t first_slot);

/* Writes the arguments that make QEMU run on this memory (memory-backend-file, share=on) into `text`, ended by
 * 0 and cut where too long. Returns the length without the 0, as snprintf. The process must live until QEMU has
 * started. -EOPNOTSUPP: private memory, or RAM that is not as QEMU has it in one file: a machine's file has the hole
 * below 4 GiB in it, so that one of 3.5 GiB and more cannot be QEMU's; `physmem serve` makes files for these. */
PM_API int pm_qemu_args(pm_machine *machine, char *text, size_t capacity);

/* Offers each shared RAM region to the vhost-user back end on the connected socket `sock`, by ADD_MEM_REG or,
 * where that was not offered, SET_MEM_TABLE (8 regions). Features must be negotiated before; the flags say what
 * was. Returns how many regions. -EOPNOTSUPP: private memory. -ENOSPC: more than the back end takes.
 * -EPROTO: it refused or answered something else. -EPIPE: it is gone. -ETIMEDOUT: no answer. */
enum pm_vhost_user_flags {
  PM_VHOST_USER_REPLY_ACK = 1,        /* VHOST_USER_PROTOCOL_F_REPLY_ACK */
  PM_VHOST_USER_CONFIGURE_MEM_SLOTS = 2 /* VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS */
};
PM_API int pm_vhost_user_add(pm_machine *machine, int sock, uint32_t flags);

#ifdef __cplusplus
}
#endif

#endif
