// KVM primitives: a virtual machine, its memory regions, its virtual CPUs; and what changing a host
// mapping under a guest needs beyond pm_host.h.
//
// The rules of pm_host.h hold: 0 or -errno, results through out-parameters that are written only on
// success, nothing allocates, nothing decides a policy, every entry into the system passes the seam
// (PM_HOST_CALL_KVM_IOCTL, and PM_HOST_CALL_KVM_RUN for KVM_RUN). Interrupted calls are repeated,
// except KVM_RUN. The functions may be called from any thread, except where a vCPU is concerned:
// one thread at a time for each vCPU. Descriptors are closed by pm_host_close, mappings unmapped by
// pm_host_unmap; both are counted with those of pm_host.h.
//
// All of it is in C because ioctl is variadic, its request numbers are macros that Swift cannot
// import, and <linux/kvm.h> has unions, flexible arrays and, of another age than the kernel, gaps.
// The guest is an x86 one: elsewhere the functions that set a vCPU's state return -ENOSYS.
#ifndef PM_KVM_H
#define PM_KVM_H

#include "pm_host.h"

#pragma GCC visibility push(hidden)

// ---- The system and the machine -----------------------------------------------------------------

/// Opens /dev/kvm for reading and writing, close-on-exec.
int pm_kvm_open(int *_Nonnull fd) PM_HOST_CHECKED;

/// Makes a virtual machine of the default type. The descriptor is close-on-exec.
/// pre: `kvm` comes from pm_kvm_open.
int pm_kvm_create_vm(int kvm, int *_Nonnull fd) PM_HOST_CHECKED;

/// Asks what KVM_CHECK_EXTENSION says about a capability: 0 = none.
/// pre: `fd` comes from pm_kvm_open or pm_kvm_create_vm.
int pm_kvm_check_extension(int fd, uint32_t capability, int *_Nonnull value) PM_HOST_CHECKED;

/// KVM_ENABLE_CAP on a machine. pre: `arguments` has 4 elements.
int pm_kvm_enable_capability(
    int vm, uint32_t capability, uint32_t flags,
    const uint64_t *_Nonnull arguments) PM_HOST_CHECKED;

// ---- Memory regions -----------------------------------------------------------------------------

/// A memory region, as the kernel's first form has it.
typedef struct pm_kvm_region {
  /// Address space << 16 | slot number.
  uint32_t slot;
  /// KVM_MEM_LOG_DIRTY_PAGES = 1, KVM_MEM_READONLY = 2, and what a test likes.
  uint32_t flags;
  uint64_t guest_physical_address;
  /// Bytes; 0 deletes the slot.
  uint64_t memory_size;
  uint64_t userspace_address;
} pm_kvm_region;

/// KVM_SET_USER_MEMORY_REGION. The kernel checks all; what it accepts the guest may read and write
/// as this process could, for as long as the region is set.
int pm_kvm_set_region(int vm, const pm_kvm_region *_Nonnull region) PM_HOST_CHECKED;

/// The same by KVM_SET_USER_MEMORY_REGION2, with no guest memory file (descriptor -1, offset 0).
/// -ENOTTY where the kernel has no such call.
int pm_kvm_set_region2(int vm, const pm_kvm_region *_Nonnull region) PM_HOST_CHECKED;

/// The number of KVM_CAP_USER_MEMORY2, which older headers lack.
#define PM_KVM_CAP_USER_MEMORY2 231

/// KVM_GET_DIRTY_LOG. pre: `bitmap` has a bit for each page of the slot, rounded up to 64.
int pm_kvm_get_dirty_log(int vm, uint32_t slot, uint64_t *_Nonnull bitmap) PM_HOST_CHECKED;

/// KVM_CLEAR_DIRTY_LOG. pre: `bitmap` has a bit for each of `count` pages, rounded up to 64.
int pm_kvm_clear_dirty_log(
    int vm, uint32_t slot, uint64_t first, uint32_t count,
    const uint64_t *_Nonnull bitmap) PM_HOST_CHECKED;

// ---- The virtual CPU ----------------------------------------------------------------------------

/// Makes a vCPU of a machine, by its number from 0. The descriptor is close-on-exec.
int pm_kvm_create_vcpu(int vm, uint32_t index, int *_Nonnull fd) PM_HOST_CHECKED;

/// Maps what the kernel shares of a vCPU, `length` bytes of it. Unmapped by pm_host_unmap.
int pm_kvm_map_run(
    int kvm, int vcpu, size_t *_Nonnull length, void *_Nullable *_Nonnull run) PM_HOST_CHECKED;

/// Gives a vCPU every CPU feature that KVM offers; without, its addresses have 36 bits.
int pm_kvm_set_default_cpuid(int kvm, int vcpu) PM_HOST_CHECKED;

/// Where the tables of a 64-bit guest lie, in guest physical = linear addresses.
typedef struct pm_kvm_tables {
  uint64_t page_table_root;
  uint64_t descriptor_table;
  uint16_t descriptor_table_limit;
  uint16_t code_selector;
  uint16_t data_selector;
  uint16_t task_selector;
  uint64_t task_segment;
} pm_kvm_tables;

/// Puts a vCPU in 64-bit mode at privilege level 3, with paging.
int pm_kvm_set_user_mode(int vcpu, const pm_kvm_tables *_Nonnull tables) PM_HOST_CHECKED;

/// The registers that our guest programs use.
typedef struct pm_kvm_registers {
  uint64_t rip;
  uint64_t rax;
  uint64_t rbx;
  uint64_t rsi;
  uint64_t rdi;
} pm_kvm_registers;

/// Sets these registers, all others to 0 and the flags to I/O privilege level 3.
int pm_kvm_set_registers(int vcpu, const pm_kvm_registers *_Nonnull registers) PM_HOST_CHECKED;

/// Reads these registers.
int pm_kvm_get_registers(int vcpu, pm_kvm_registers *_Nonnull registers) PM_HOST_CHECKED;

/// The exits that our guests know, and KVM's numbers for them.
#define PM_KVM_EXIT_IO 2
#define PM_KVM_EXIT_MMIO 6
#define PM_KVM_EXIT_DIRTY_RING_FULL 31

/// Why a run ended.
typedef struct pm_kvm_exit {
  /// KVM_EXIT_*; what pm_kvm_run was told to put there if the kernel left it.
  uint32_t reason;
  /// For PM_KVM_EXIT_IO: the port.
  uint16_t port;
  /// For PM_KVM_EXIT_MMIO: whether it is a write, how many bytes, and where.
  bool is_write;
  uint32_t byte_count;
  uint64_t guest_physical_address;
} pm_kvm_exit;

/// One KVM_RUN, not repeated when interrupted (-EINTR). `exit` is written in any case, for the
/// reason matters also where the call failed; `unset_reason` is its reason if the kernel gave none.
/// pre: `run` comes from pm_kvm_map_run for this vCPU.
int pm_kvm_run(
    int vcpu, void *_Nonnull run, uint32_t unset_reason, pm_kvm_exit *_Nonnull exit)
    PM_HOST_CHECKED;

/// Completes the instruction behind a PM_KVM_EXIT_MMIO: a read gets bytes of `fill`, and KVM_RUN
/// with immediate_exit ends it without running anything further. Leaves immediate_exit clear.
/// -EPROTO if the kernel still asks for more after 16 rounds.
int pm_kvm_complete_mmio(int vcpu, void *_Nonnull run, uint8_t fill) PM_HOST_CHECKED;

/// Sets or clears immediate_exit: while it is set KVM_RUN returns -EINTR at once. Any thread; in
/// one order with the caller's sequentially consistent atomics.
void pm_kvm_set_immediate_exit(void *_Nonnull run, bool value);

/// The kernel's number of the calling thread, not 0.
int pm_kvm_thread_id(void) PM_HOST_CHECKED;

/// Makes the kick signal harmless in this process: it gets a handler that does nothing, unless it
/// has a handler already.
int pm_kvm_prepare_kicks(void) PM_HOST_CHECKED;

/// Sends the kick signal to a thread of this process: a KVM_RUN there ends with -EINTR. -ESRCH if
/// there is no such thread. pre: pm_kvm_prepare_kicks has succeeded.
/// In C because tgkill is a bare system call here, and SIGRTMIN a function behind a macro.
int pm_kvm_kick(int thread) PM_HOST_CHECKED;

// ---- The dirty ring -----------------------------------------------------------------------------

/// The number of KVM_CAP_DIRTY_LOG_RING_ACQ_REL, and the size of a ring entry in bytes.
#define PM_KVM_CAP_DIRTY_LOG_RING_ACQ_REL 223
#define PM_KVM_DIRTY_RING_ENTRY_SIZE 16

/// Maps a vCPU's dirty ring of `length` bytes. Unmapped by pm_host_unmap.
int pm_kvm_map_dirty_ring(
    int vcpu, size_t length, void *_Nullable *_Nonnull ring) PM_HOST_CHECKED;

/// A page that the guest has written (or may have).
typedef struct pm_kvm_dirty_page {
  /// Address space << 16 | slot number.
  uint32_t slot;
  /// The page's number in the slot.
  uint64_t offset;
} pm_kvm_dirty_page;

/// Takes entry `index` out of the ring if it is dirty; the kernel may reuse it after
/// pm_kvm_reset_dirty_rings. Returns whether it was dirty; no error is possible.
/// In C because the flags are the kernel's, to be read with acquire and written with release order.
bool pm_kvm_harvest_dirty_page(
    void *_Nonnull ring, size_t index, pm_kvm_dirty_page *_Nonnull page) PM_HOST_CHECKED;

/// KVM_RESET_DIRTY_RINGS: gives back what was harvested, and yields how many entries that were.
int pm_kvm_reset_dirty_rings(int vm, uint32_t *_Nonnull count) PM_HOST_CHECKED;

// ---- Mirroring a host mapping -------------------------------------------------------------------

/// Duplicates a descriptor, close-on-exec. Unlike that of pm_host_duplicate it is counted as live,
/// and closed by pm_host_close. In C because fcntl is variadic.
int pm_kvm_duplicate(int fd, int *_Nonnull duplicate) PM_HOST_CHECKED;

/// Maps `length` bytes of a file from `offset` exactly at `at`, shared, in place of what is there.
/// pre: page-aligned; the range lies inside one mapping made by pm_host_map, of which it is part
/// from then on. In C because MAP_FAILED is a cast macro, and because it must pass the seam.
int pm_kvm_map_file_at(
    void *_Nonnull at, size_t length, int fd, uint64_t offset, bool writable) PM_HOST_CHECKED;

/// What a range allows.
typedef enum __attribute__((enum_extensibility(closed))) pm_kvm_protection : int {
  PM_KVM_PROTECTION_NONE = 0,
  PM_KVM_PROTECTION_READ = 1,
  PM_KVM_PROTECTION_READ_WRITE = 2,
} pm_kvm_protection;

/// Changes what a range allows. pre: page-aligned. In C because it must pass the seam.
int pm_kvm_protect(
    void *_Nonnull base, size_t length, pm_kvm_protection protection) PM_HOST_CHECKED;

/// Moves the pages of `length` bytes of private anonymous memory from `from` to `to`, in place of
/// what is there; `from` stays mapped, without pages, with its rights. Needs Linux 5.7.
/// pre: page-aligned; the ranges do not overlap and each lies inside a mapping made by pm_host_map,
/// of which it is part from then on. In C because mremap is variadic.
int pm_kvm_move_pages(void *_Nonnull from, size_t length, void *_Nonnull to) PM_HOST_CHECKED;

#pragma GCC visibility pop

#endif
