// Host primitives: map, unmap, advise, bind, query, prefault.
//
// Every function returns 0 or -errno; results come through out-parameters, which are written only
// on success. errno never crosses this boundary, nothing here decides a policy, and nothing
// allocates. An interrupted call (EINTR) is repeated, except close, which Linux completes anyway.
//
// Every entry into the system passes one seam, at which a test can make any call fail: see the last
// section. All functions may be called from any thread.
#ifndef PM_HOST_H
#define PM_HOST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PM_HOST_CHECKED __attribute__((warn_unused_result))

#pragma GCC visibility push(hidden)

// ---- Descriptors --------------------------------------------------------------------------------

/// Makes an unnamed memory file of size 0, close-on-exec and open to seals.
/// `huge_page_shift` is 0 for ordinary pages, else the binary logarithm of a huge page size (21,
/// 30). `noexec` makes the file unexecutable for good (Linux 6.3; EINVAL before).
/// pre: `name` has at most 249 bytes; it shows in /proc/PID/maps and means nothing.
/// In C because memfd_create and its flags are invisible to Swift without _GNU_SOURCE.
int pm_host_memfd_create(
    const char *_Nonnull name, int huge_page_shift, bool noexec, int *_Nonnull fd) PM_HOST_CHECKED;

/// Sets a file's size to `length` bytes. In C because it must pass the seam.
int pm_host_truncate(int fd, uint64_t length) PM_HOST_CHECKED;

/// Forbids shrinking and growing the memory file, and any further seal, for good.
/// In C because fcntl is variadic.
int pm_host_seal_size(int fd) PM_HOST_CHECKED;

/// Duplicates a descriptor, close-on-exec. The caller takes it over: it is not counted as live
/// here.
/// In C because fcntl is variadic.
int pm_host_duplicate(int fd, int *_Nonnull duplicate) PM_HOST_CHECKED;

/// The same, and counts it as live here: for pm_host_close.
/// In C for the same reason.
int pm_host_duplicate_own(int fd, int *_Nonnull duplicate) PM_HOST_CHECKED;

/// Closes a descriptor that this file made. It is closed whatever is returned, except for EBADF.
/// In C because it must pass the seam.
int pm_host_close(int fd) PM_HOST_CHECKED;

/// Allocates the file's pages of this range now; the size does not change.
/// In C because fallocate is invisible to Swift without _GNU_SOURCE.
int pm_host_preallocate(int fd, uint64_t offset, uint64_t length) PM_HOST_CHECKED;

/// Frees the file's pages of this range; it reads as zero afterwards, the size does not change.
/// pre: for huge pages, offset and length are multiples of the page size, or only the whole pages
/// inside are freed. In C because fallocate is invisible to Swift without _GNU_SOURCE.
int pm_host_punch_hole(int fd, uint64_t offset, uint64_t length) PM_HOST_CHECKED;

/// The file's size, and the bytes that it has pages for. In C because it must pass the seam.
int pm_host_file_size(
    int fd, uint64_t *_Nonnull length, uint64_t *_Nonnull allocated) PM_HOST_CHECKED;

/// Reads a whole small file (sysfs, procfs) into `buffer`; -EFBIG if it does not fit.
/// In C because open is variadic and because it must pass the seam.
int pm_host_read_file(
    const char *_Nonnull path, void *_Nonnull buffer, size_t capacity,
    size_t *_Nonnull length) PM_HOST_CHECKED;

// ---- Mappings -----------------------------------------------------------------------------------

/// What to map.
typedef struct pm_host_map_request {
  /// Bytes; the kernel rounds up to the page size.
  size_t length;
  /// A file to map, or -1 for anonymous memory.
  int fd;
  /// For anonymous memory: 0, or the binary logarithm of a huge page size (21, 30).
  int huge_page_shift;
  /// MAP_SHARED, else MAP_PRIVATE.
  bool shared;
  /// Whether the kernel accounts (hugetlb: reserves) the pages now; else MAP_NORESERVE.
  bool reserved;
  /// Whether the range can be read and written; else it only holds addresses.
  bool accessible;
  /// Where in the file the mapping begins: a multiple of its page size.
  uint64_t offset;
} pm_host_map_request;

/// Maps memory where the kernel likes, or, if `at` is given, exactly there in place of what is
/// mapped.
/// pre: `at` and the range behind it lie inside one mapping made by this function: it is part of
/// that mapping from then on, and is unmapped and counted with it.
/// In C because MAP_FAILED is a cast macro, and because it must pass the seam.
int pm_host_map(
    const pm_host_map_request *_Nonnull request, void *_Nullable at,
    void *_Nullable *_Nonnull base) PM_HOST_CHECKED;

/// Unmaps a range. pre: exactly a mapping made by pm_host_map without `at`.
/// In C because it must pass the seam.
int pm_host_unmap(void *_Nonnull base, size_t length) PM_HOST_CHECKED;

/// What to tell the kernel about a range.
typedef enum __attribute__((enum_extensibility(closed))) pm_host_advice : int {
  /// Use transparent huge pages (EINVAL where the kernel has none).
  PM_HOST_ADVICE_HUGE_PAGES = 0,
  /// Use no transparent huge pages (EINVAL where the kernel has none).
  PM_HOST_ADVICE_SMALL_PAGES = 1,
  /// Drop the pages: private memory reads as zero afterwards.
  PM_HOST_ADVICE_DROP = 2,
} pm_host_advice;

/// Advises the kernel about a range. pre: page-aligned. In C because it must pass the seam.
int pm_host_advise(void *_Nonnull base, size_t length, pm_host_advice advice) PM_HOST_CHECKED;

/// The most threads that pm_host_prefault takes.
#define PM_HOST_PREFAULT_THREADS_MAX 256

/// Makes every page of a range present and writable, on `threads` threads (the calling one is one
/// of them), without changing its contents, even while others write it. The shares are cut at
/// multiples of 2 MiB, or of the page size where that is larger. Where the kernel cannot populate
/// (before 5.14) each page is touched by an atomic addition of 0; a lack of memory is then a
/// SIGBUS, not an error.
/// pre: page-aligned; 1 <= threads <= PM_HOST_PREFAULT_THREADS_MAX; page_size is a power of two.
/// In C because an addition on memory that others write must be an atomic instruction, and the
/// threads must be plain ones that carry the seam's arming.
int pm_host_prefault(
    void *_Nonnull base, size_t length, size_t page_size, unsigned threads) PM_HOST_CHECKED;

/// Sets in `bits` the bit of each 4096-byte page of a range that is present or swapped out in this process, or,
/// with `own`, only of those that are no file's: private memory, and what was written of a private mapping. One
/// bit per page, in words of 64; bits that were set stay.
/// pre: page-aligned; `bits` has a bit for each page, rounded up to a word.
/// In C because it must pass the seam, and because an entry of /proc/self/pagemap is a bit field.
int pm_host_pages(
    const void *_Nonnull base, size_t length, bool own, uint64_t *_Nonnull bits) PM_HOST_CHECKED;

// ---- NUMA (libnuma) -----------------------------------------------------------------------------

/// One more than the highest node number that this file handles.
#define PM_HOST_NODES_MAX 1024

/// The highest node number of this machine; -ENOSYS where the kernel has no NUMA.
/// In C because libnuma must be asked whether it is available before anything else.
int pm_host_numa_highest_node(int *_Nonnull node) PM_HOST_CHECKED;

/// What is known of a node: its memory and how much of that is free, in bytes (0 for a node without
/// any), and whether this process may take memory from it.
typedef struct pm_host_node {
  uint64_t total;
  uint64_t free;
  bool usable;
} pm_host_node;

/// Asks for a node; -ENOENT if there is no such node.
/// In C because libnuma answers through global bit masks.
int pm_host_numa_node(int node, pm_host_node *_Nonnull found) PM_HOST_CHECKED;

/// The distance between two nodes (10 = the same); -ENOENT if the kernel tells none.
/// In C because libnuma fills its table without a lock.
int pm_host_numa_distance(int from, int to, int *_Nonnull distance) PM_HOST_CHECKED;

/// The node of a CPU; -ENOENT if there is no such CPU. In C because libnuma fills its table without
/// a lock.
int pm_host_numa_node_of_cpu(int cpu, int *_Nonnull node) PM_HOST_CHECKED;

/// Lets the pages of a range come from one node only; pages already there stay.
/// pre: page-aligned. -EINVAL for a node out of range or without memory.
/// In C because the node mask is an array of unsigned long with a length off by one.
int pm_host_bind(void *_Nonnull base, size_t length, int node) PM_HOST_CHECKED;

/// Lets the pages of a range come from these nodes in turn; pages already there stay.
/// pre: page-aligned. -EINVAL for a node out of range or without memory.
/// In C for the same reason as pm_host_bind.
int pm_host_interleave(
    void *_Nonnull base, size_t length, const int *_Nonnull nodes, size_t count) PM_HOST_CHECKED;

/// The node that holds the page at an address, or -1 if this process has no page mapped there. Does
/// not make the page present. In C because move_pages is libnuma's.
int pm_host_node_of_page(void *_Nonnull address, int *_Nonnull node) PM_HOST_CHECKED;

// ---- Process ------------------------------------------------------------------------------------

/// Keeps the calling thread on one CPU. -EINVAL for a CPU that is not there.
/// In C because CPU_SET is a macro.
int pm_host_pin_thread(int cpu) PM_HOST_CHECKED;
/// Gives back to the kernel what the C library's heap keeps for later. In C: not in Swift's Glibc module.
void pm_host_trim_heap(void);

/// The soft limit of locked memory in bytes; UINT64_MAX means none.
/// In C because the type of a resource's name depends on the C dialect.
int pm_host_memlock_limit(uint64_t *_Nonnull limit) PM_HOST_CHECKED;

/// The name of an error number ("ENOMEM"), or null. In C because glibc hides it behind _GNU_SOURCE.
const char *_Nullable pm_host_error_name(int error_number) PM_HOST_CHECKED;

// ---- The seam -----------------------------------------------------------------------------------

/// The calls that pass the seam. ANY stands for each of them.
typedef enum __attribute__((enum_extensibility(closed))) pm_host_call : int {
  PM_HOST_CALL_ANY = 0,
  PM_HOST_CALL_MEMFD_CREATE,
  PM_HOST_CALL_FTRUNCATE,
  PM_HOST_CALL_SEAL,
  PM_HOST_CALL_DUP,
  PM_HOST_CALL_CLOSE,
  PM_HOST_CALL_FALLOCATE,
  PM_HOST_CALL_OPEN,
  PM_HOST_CALL_READ,
  PM_HOST_CALL_MMAP,
  PM_HOST_CALL_MUNMAP,
  PM_HOST_CALL_MADVISE,
  PM_HOST_CALL_THREAD_CREATE,
  PM_HOST_CALL_NUMA_QUERY,
  PM_HOST_CALL_MBIND,
  PM_HOST_CALL_MOVE_PAGES,
  PM_HOST_CALL_SETAFFINITY,
  PM_HOST_CALL_GETRLIMIT,
  PM_HOST_CALL_MPROTECT,
  // Every KVM ioctl but KVM_RUN.
  PM_HOST_CALL_KVM_IOCTL,
  PM_HOST_CALL_KVM_RUN,
  PM_HOST_CALL_FSTAT,
  // socket, socketpair, accept.
  PM_HOST_CALL_SOCKET,
  // fchmod, bind and listen.
  PM_HOST_CALL_BIND,
  PM_HOST_CALL_CONNECT,
  PM_HOST_CALL_UNLINK,
  PM_HOST_CALL_SEND,
  PM_HOST_CALL_RECEIVE,
  PM_HOST_CALL_POLL,
  // eventfd, and its read and write.
  PM_HOST_CALL_EVENT,
} pm_host_call;
#define PM_HOST_CALL_COUNT (PM_HOST_CALL_EVENT + 1)

/// Makes the `nth` (1 = the next) call of this kind fail with `error_number` instead of being made,
/// once, if the calling thread makes it, or a thread that pm_host_prefault starts for it. Sets the
/// counts of calls to 0. A close that is made to fail closes all the same, as Linux does.
void pm_host_fault_arm(pm_host_call call, unsigned nth, int error_number);

/// Makes no call fail any more. The counts of calls stay.
void pm_host_fault_disarm(void);

/// Whether the armed fault has happened.
bool pm_host_fault_fired(void) PM_HOST_CHECKED;

/// How many calls of this kind the calling thread has made since it last armed a fault, or ever.
unsigned pm_host_fault_calls(pm_host_call call) PM_HOST_CHECKED;

/// Mappings made by pm_host_map and not yet unmapped, in the whole process.
int64_t pm_host_live_mappings(void) PM_HOST_CHECKED;

/// Descriptors made here and not yet closed, in the whole process.
int64_t pm_host_live_fds(void) PM_HOST_CHECKED;

/// Mappings that the calling thread made less those that it unmapped: a test that runs beside
/// others compares this before and after.
int64_t pm_host_thread_live_mappings(void) PM_HOST_CHECKED;

/// Descriptors that the calling thread made less those that it closed.
int64_t pm_host_thread_live_fds(void) PM_HOST_CHECKED;

#pragma GCC visibility pop

#endif
