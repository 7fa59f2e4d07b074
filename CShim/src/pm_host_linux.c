// The host primitives on Linux. See pm_host.h for contracts. What enters the system here or in
// pm_kvm_linux.c passes the seam of pm_seam.h.
#include "pm_host.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <numa.h>
#include <numaif.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pm_seam.h"

// The C library of the build machine may be older than the kernel.
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

// ---- The seam -----------------------------------------------------------------------------------

typedef struct {
  pm_host_call call;
  unsigned nth;
  int error_number;
  _Atomic(bool) fired;
  // Atomic because prefault workers count in the state of the thread that started them.
  _Atomic(unsigned) made[PM_HOST_CALL_COUNT];
} pm_fault_state;

static _Thread_local pm_fault_state pm_own_faults;
// Set in prefault workers only, which end before the thread that started them goes on.
static _Thread_local pm_fault_state *pm_inherited_faults;

static _Atomic(int64_t) pm_live_mappings;
static _Atomic(int64_t) pm_live_fds;
static _Thread_local int64_t pm_thread_live_mappings;
static _Thread_local int64_t pm_thread_live_fds;

static pm_fault_state *pm_faults(void) {
  return pm_inherited_faults != NULL ? pm_inherited_faults : &pm_own_faults;
}

int pm_host_fault(pm_host_call call) {
  pm_fault_state *state = pm_faults();
  unsigned of_all =
      atomic_fetch_add_explicit(&state->made[PM_HOST_CALL_ANY], 1, memory_order_relaxed) + 1;
  unsigned of_kind = atomic_fetch_add_explicit(&state->made[call], 1, memory_order_relaxed) + 1;
  if (state->error_number == 0) return 0;
  unsigned ordinal = state->call == PM_HOST_CALL_ANY ? of_all : state->call == call ? of_kind : 0;
  if (ordinal != state->nth) return 0;
  atomic_store_explicit(&state->fired, true, memory_order_relaxed);
  return -state->error_number;
}

void pm_host_fault_arm(pm_host_call call, unsigned nth, int error_number) {
  pm_own_faults = (pm_fault_state){.call = call, .nth = nth, .error_number = error_number};
}

void pm_host_fault_disarm(void) { pm_own_faults.error_number = 0; }

bool pm_host_fault_fired(void) {
  return atomic_load_explicit(&pm_own_faults.fired, memory_order_relaxed);
}

unsigned pm_host_fault_calls(pm_host_call call) {
  return atomic_load_explicit(&pm_own_faults.made[call], memory_order_relaxed);
}

int64_t pm_host_live_mappings(void) {
  return atomic_load_explicit(&pm_live_mappings, memory_order_relaxed);
}

int64_t pm_host_live_fds(void) { return atomic_load_explicit(&pm_live_fds, memory_order_relaxed); }

int64_t pm_host_thread_live_mappings(void) { return pm_thread_live_mappings; }

int64_t pm_host_thread_live_fds(void) { return pm_thread_live_fds; }

void pm_count_mappings(int64_t change) {
  atomic_fetch_add_explicit(&pm_live_mappings, change, memory_order_relaxed);
  pm_thread_live_mappings += change;
}

void pm_count_fds(int64_t change) {
  atomic_fetch_add_explicit(&pm_live_fds, change, memory_order_relaxed);
  pm_thread_live_fds += change;
}

// ---- Descriptors --------------------------------------------------------------------------------

int pm_host_memfd_create(const char *name, int huge_page_shift, bool noexec, int *fd) {
  unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  if (noexec) flags |= MFD_NOEXEC_SEAL;
  if (huge_page_shift != 0) flags |= MFD_HUGETLB | (unsigned)huge_page_shift << MAP_HUGE_SHIFT;
  intptr_t result = PM_SYSTEM_CALL(PM_HOST_CALL_MEMFD_CREATE, memfd_create(name, flags));
  if (result < 0) return (int)result;
  pm_count_fds(1);
  *fd = (int)result;
  return 0;
}

int pm_host_truncate(int fd, uint64_t length) {
  return (int)PM_SYSTEM_CALL(PM_HOST_CALL_FTRUNCATE, ftruncate(fd, (off_t)length));
}

int pm_host_seal_size(int fd) {
  int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  return (int)PM_SYSTEM_CALL(PM_HOST_CALL_SEAL, fcntl(fd, F_ADD_SEALS, seals));
}

int pm_host_duplicate(int fd, int *duplicate) {
  intptr_t result = PM_SYSTEM_CALL(PM_HOST_CALL_DUP, fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (result < 0) return (int)result;
  *duplicate = (int)result;
  return 0;
}

int pm_host_duplicate_own(int fd, int *duplicate) {
  int result = pm_host_duplicate(fd, duplicate);
  if (result == 0) pm_count_fds(1);
  return result;
}

int pm_host_close(int fd) {
  int forced = pm_host_fault(PM_HOST_CALL_CLOSE);
  int result = close(fd) == 0 ? 0 : -errno;
  // After every other error the descriptor is gone; a second close could hit somebody else's.
  if (result != -EBADF) pm_count_fds(-1);
  return forced != 0 ? forced : result;
}

int pm_host_preallocate(int fd, uint64_t offset, uint64_t length) {
  return (int)PM_SYSTEM_CALL(
      PM_HOST_CALL_FALLOCATE, fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length));
}

int pm_host_punch_hole(int fd, uint64_t offset, uint64_t length) {
  int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  return (int)PM_SYSTEM_CALL(
      PM_HOST_CALL_FALLOCATE, fallocate(fd, mode, (off_t)offset, (off_t)length));
}

int pm_host_file_size(int fd, uint64_t *length, uint64_t *allocated) {
  struct stat status;
  int result = (int)PM_SYSTEM_CALL(PM_HOST_CALL_FSTAT, fstat(fd, &status));
  if (result != 0) return result;
  *length = (uint64_t)status.st_size;
  *allocated = (uint64_t)status.st_blocks * 512;
  return 0;
}

static int pm_read_all(int fd, char *buffer, size_t capacity, size_t *length) {
  for (size_t filled = 0; filled < capacity;) {
    intptr_t result =
        PM_SYSTEM_CALL(PM_HOST_CALL_READ, read(fd, buffer + filled, capacity - filled));
    if (result == 0) *length = filled;
    if (result <= 0) return (int)result;
    filled += (size_t)result;
  }
  return -EFBIG;
}

int pm_host_read_file(const char *path, void *buffer, size_t capacity, size_t *length) {
  intptr_t fd = PM_SYSTEM_CALL(PM_HOST_CALL_OPEN, open(path, O_RDONLY | O_CLOEXEC));
  if (fd < 0) return (int)fd;
  pm_count_fds(1);
  int result = pm_read_all((int)fd, buffer, capacity, length);
  int closed = pm_host_close((int)fd);
  return result != 0 ? result : closed;
}

// ---- Mappings -----------------------------------------------------------------------------------

int pm_host_map(const pm_host_map_request *request, void *at, void **base) {
  int protection = request->accessible ? PROT_READ | PROT_WRITE : PROT_NONE;
  int flags = request->shared ? MAP_SHARED : MAP_PRIVATE;
  if (request->fd < 0) flags |= MAP_ANONYMOUS;
  if (!request->reserved) flags |= MAP_NORESERVE;
  if (request->huge_page_shift != 0)
    flags |= MAP_HUGETLB | (int)((unsigned)request->huge_page_shift << MAP_HUGE_SHIFT);
  if (at != NULL) flags |= MAP_FIXED;
  intptr_t result = PM_SYSTEM_CALL(
      PM_HOST_CALL_MMAP, mmap(at, request->length, protection, flags, request->fd,
                              (off_t)request->offset));
  if (result < 0) return (int)result;
  if (at == NULL) pm_count_mappings(1);
  *base = (void *)result;
  return 0;
}

int pm_host_unmap(void *base, size_t length) {
  int result = (int)PM_SYSTEM_CALL(PM_HOST_CALL_MUNMAP, munmap(base, length));
  if (result == 0) pm_count_mappings(-1);
  return result;
}

int pm_host_advise(void *base, size_t length, pm_host_advice advice) {
  static const int numbers[] = {
      [PM_HOST_ADVICE_HUGE_PAGES] = MADV_HUGEPAGE,
      [PM_HOST_ADVICE_SMALL_PAGES] = MADV_NOHUGEPAGE,
      [PM_HOST_ADVICE_DROP] = MADV_DONTNEED,
  };
  return (int)PM_SYSTEM_CALL(PM_HOST_CALL_MADVISE, madvise(base, length, numbers[advice]));
}

// Bits of an entry of /proc/PID/pagemap.
#define PM_PAGEMAP_PRESENT (1ull << 63)
#define PM_PAGEMAP_SWAPPED (1ull << 62)
#define PM_PAGEMAP_FILE (1ull << 61)

static int pm_read_pagemap(int fd, uint64_t first, uint64_t count, bool own, uint64_t *bits) {
  uint64_t entries[512];
  for (uint64_t done = 0; done < count;) {
    uint64_t wanted = count - done < 512 ? count - done : 512;
    intptr_t result = PM_SYSTEM_CALL(
        PM_HOST_CALL_READ,
        pread(fd, entries, wanted * sizeof entries[0], (off_t)((first + done) * sizeof entries[0])));
    if (result < 0) return (int)result;
    uint64_t got = (uint64_t)result / sizeof entries[0];
    if (got == 0) return -EIO;
    for (uint64_t i = 0; i < got; i++) {
      if ((entries[i] & (PM_PAGEMAP_PRESENT | PM_PAGEMAP_SWAPPED)) == 0) continue;
      if (own && (entries[i] & PM_PAGEMAP_FILE) != 0) continue;
      bits[(done + i) / 64] |= 1ull << ((done + i) % 64);
    }
    done += got;
  }
  return 0;
}

int pm_host_pages(const void *base, size_t length, bool own, uint64_t *bits) {
  intptr_t fd =
      PM_SYSTEM_CALL(PM_HOST_CALL_OPEN, open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (fd < 0) return (int)fd;
  pm_count_fds(1);
  int result = pm_read_pagemap((int)fd, (uintptr_t)base / 4096, length / 4096, own, bits);
  int closed = pm_host_close((int)fd);
  return result != 0 ? result : closed;
}

// ---- Prefault -----------------------------------------------------------------------------------

typedef struct {
  char *start;
  size_t length;
  size_t page_size;
  pm_fault_state *faults;
  bool started;
  pthread_t thread;
  int result;
} pm_prefault_share;

static int pm_populate(char *start, size_t length, size_t page_size) {
  if (length == 0) return 0;
  int result =
      (int)PM_SYSTEM_CALL(PM_HOST_CALL_MADVISE, madvise(start, length, MADV_POPULATE_WRITE));
  if (result != -EINVAL) return result;
  // Volatile, or the compiler drops an addition of nothing.
  for (size_t offset = 0; offset < length; offset += page_size)
    atomic_fetch_add_explicit(
        (volatile _Atomic(uint8_t) *)(start + offset), 0, memory_order_relaxed);
  return 0;
}

static void *pm_prefault_worker(void *argument) {
  pm_prefault_share *share = argument;
  pm_inherited_faults = share->faults;
  share->result = pm_populate(share->start, share->length, share->page_size);
  return NULL;
}

static int pm_prefault_start(pm_prefault_share *share) {
  int forced = pm_host_fault(PM_HOST_CALL_THREAD_CREATE);
  return forced != 0 ? forced
                     : -pthread_create(&share->thread, NULL, pm_prefault_worker, share);
}

// The first byte of share `index` of `count`: the even cut, moved up to a multiple of `unit`.
static char *pm_share_start(
    char *base, size_t length, size_t unit, unsigned index, unsigned count) {
  if (index == 0) return base;
  uintptr_t start = (uintptr_t)base, end = start + length;
  uintptr_t cut = start + length / count * index;
  cut = (cut + unit - 1) & ~(uintptr_t)(unit - 1);
  return (char *)(index == count || cut > end ? end : cut);
}

int pm_host_prefault(void *base, size_t length, size_t page_size, unsigned threads) {
  if (threads == 0 || threads > PM_HOST_PREFAULT_THREADS_MAX) return -EINVAL;
  pm_prefault_share shares[PM_HOST_PREFAULT_THREADS_MAX];
  size_t unit = page_size > (size_t)2 << 20 ? page_size : (size_t)2 << 20;
  int result = 0;
  // The workers must not run the program's signal handlers.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  for (unsigned index = 0; index < threads; index++) {
    char *start = pm_share_start(base, length, unit, index, threads);
    char *end = pm_share_start(base, length, unit, index + 1, threads);
    shares[index] = (pm_prefault_share){
        .start = start, .length = (size_t)(end - start), .page_size = page_size,
        .faults = pm_faults()};
    if (index == 0 || start == end || result != 0) continue;
    result = pm_prefault_start(&shares[index]);
    shares[index].started = result == 0;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (result == 0) result = pm_populate(shares[0].start, shares[0].length, page_size);
  for (unsigned index = 1; index < threads; index++) {
    if (!shares[index].started) continue;
    pthread_join(shares[index].thread, NULL);
    if (result == 0) result = shares[index].result;
  }
  return result;
}

// ---- NUMA ---------------------------------------------------------------------------------------

// libnuma fills its distance and CPU tables at the first question, without a lock of its own.
static pthread_mutex_t pm_numa_tables = PTHREAD_MUTEX_INITIALIZER;

#define PM_BITS_PER_WORD (8 * sizeof(unsigned long))

// Every question to libnuma begins here: none of its functions may be called where this fails.
static int pm_numa_begin(void) {
  int result = (int)PM_SYSTEM_CALL(PM_HOST_CALL_NUMA_QUERY, 0);
  if (result != 0) return result;
  return numa_available() < 0 ? -ENOSYS : 0;
}

static bool pm_numa_has_node(int node) {
  return node >= 0 && node <= numa_max_node()
      && numa_bitmask_isbitset(numa_nodes_ptr, (unsigned)node);
}

int pm_host_numa_highest_node(int *node) {
  int result = pm_numa_begin();
  if (result != 0) return result;
  *node = numa_max_node();
  return 0;
}

int pm_host_numa_node(int node, pm_host_node *found) {
  int result = pm_numa_begin();
  if (result != 0) return result;
  if (!pm_numa_has_node(node)) return -ENOENT;
  long long free = 0;
  long long total = numa_node_size64(node, &free);
  found->total = total > 0 ? (uint64_t)total : 0;
  found->free = total > 0 && free > 0 ? (uint64_t)free : 0;
  found->usable = numa_bitmask_isbitset(numa_all_nodes_ptr, (unsigned)node);
  return 0;
}

int pm_host_numa_distance(int from, int to, int *distance) {
  int result = pm_numa_begin();
  if (result != 0) return result;
  if (!pm_numa_has_node(from) || !pm_numa_has_node(to)) return -ENOENT;
  pthread_mutex_lock(&pm_numa_tables);
  int found = numa_distance(from, to);
  pthread_mutex_unlock(&pm_numa_tables);
  if (found == 0) return -ENOENT;
  *distance = found;
  return 0;
}

int pm_host_numa_node_of_cpu(int cpu, int *node) {
  int result = pm_numa_begin();
  if (result != 0) return result;
  if (cpu < 0 || cpu >= numa_num_possible_cpus()) return -ENOENT;
  pthread_mutex_lock(&pm_numa_tables);
  int found = numa_node_of_cpu(cpu);
  pthread_mutex_unlock(&pm_numa_tables);
  if (found < 0) return -ENOENT;
  *node = found;
  return 0;
}

static int pm_set_policy(void *base, size_t length, int mode, const int *nodes, size_t count) {
  unsigned long mask[PM_HOST_NODES_MAX / PM_BITS_PER_WORD] = {0};
  for (size_t index = 0; index < count; index++) {
    if (nodes[index] < 0 || nodes[index] >= PM_HOST_NODES_MAX) return -EINVAL;
    size_t bit = (size_t)nodes[index];
    mask[bit / PM_BITS_PER_WORD] |= 1UL << (bit % PM_BITS_PER_WORD);
  }
  // The kernel reads one bit less than it is told.
  return (int)PM_SYSTEM_CALL(
      PM_HOST_CALL_MBIND, mbind(base, length, mode, mask, PM_HOST_NODES_MAX + 1, 0));
}

int pm_host_bind(void *base, size_t length, int node) {
  return pm_set_policy(base, length, MPOL_BIND, &node, 1);
}

int pm_host_interleave(void *base, size_t length, const int *nodes, size_t count) {
  return pm_set_policy(base, length, MPOL_INTERLEAVE, nodes, count);
}

int pm_host_node_of_page(void *address, int *node) {
  int status = -ENOENT;
  int result = (int)PM_SYSTEM_CALL(
      PM_HOST_CALL_MOVE_PAGES, move_pages(0, 1, &address, NULL, &status, 0));
  if (result < 0) return result;
  // No page, or the zero page, which belongs to nobody.
  if (status == -ENOENT || status == -EFAULT) status = -1;
  if (status < -1) return status;
  *node = status;
  return 0;
}

// ---- Process ------------------------------------------------------------------------------------

void pm_host_trim_heap(void) {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

int pm_host_pin_thread(int cpu) {
  if (cpu < 0 || cpu >= CPU_SETSIZE) return -EINVAL;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET((size_t)cpu, &set);
  return (int)PM_SYSTEM_CALL(PM_HOST_CALL_SETAFFINITY, sched_setaffinity(0, sizeof set, &set));
}

int pm_host_memlock_limit(uint64_t *limit) {
  struct rlimit found;
  int result = (int)PM_SYSTEM_CALL(PM_HOST_CALL_GETRLIMIT, getrlimit(RLIMIT_MEMLOCK, &found));
  if (result != 0) return result;
  *limit = found.rlim_cur == RLIM_INFINITY ? UINT64_MAX : (uint64_t)found.rlim_cur;
  return 0;
}

const char *pm_host_error_name(int error_number) { return strerrorname_np(error_number); }
