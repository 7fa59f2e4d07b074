// The KVM primitives on Linux. See pm_kvm.h for contracts.
#include "pm_kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pm_seam.h"

#define PM_KVM_IOCTL(fd, request, argument) \
  ((int)PM_SYSTEM_CALL(PM_HOST_CALL_KVM_IOCTL, ioctl(fd, request, argument)))

// An ioctl that yields a descriptor.
static int pm_kvm_descriptor(int result, int *fd) {
  if (result < 0) return result;
  pm_count_fds(1);
  *fd = result;
  return 0;
}

// ---- The system and the machine -----------------------------------------------------------------

int pm_kvm_open(int *fd) {
  return pm_kvm_descriptor(
      (int)PM_SYSTEM_CALL(PM_HOST_CALL_OPEN, open("/dev/kvm", O_RDWR | O_CLOEXEC)), fd);
}

int pm_kvm_create_vm(int kvm, int *fd) {
  return pm_kvm_descriptor(PM_KVM_IOCTL(kvm, KVM_CREATE_VM, 0UL), fd);
}

int pm_kvm_check_extension(int fd, uint32_t capability, int *value) {
  int result = PM_KVM_IOCTL(fd, KVM_CHECK_EXTENSION, (unsigned long)capability);
  if (result < 0) return result;
  *value = result;
  return 0;
}

int pm_kvm_enable_capability(
    int vm, uint32_t capability, uint32_t flags, const uint64_t *arguments) {
  struct kvm_enable_cap request = {.cap = capability, .flags = flags};
  memcpy(request.args, arguments, sizeof request.args);
  int result = PM_KVM_IOCTL(vm, KVM_ENABLE_CAP, &request);
  return result < 0 ? result : 0;
}

// ---- Memory regions -----------------------------------------------------------------------------

// The second form of a region, which headers before Linux 6.8 lack.
typedef struct {
  uint32_t slot;
  uint32_t flags;
  uint64_t guest_phys_addr;
  uint64_t memory_size;
  uint64_t userspace_addr;
  uint64_t guest_memfd_offset;
  uint32_t guest_memfd;
  uint32_t pad1;
  uint64_t pad2[14];
} pm_kvm_region2;
_Static_assert(sizeof(pm_kvm_region2) == 160, "the kernel's size of the second form");
_Static_assert(PM_KVM_EXIT_IO == KVM_EXIT_IO, "an exit's number");
_Static_assert(PM_KVM_EXIT_MMIO == KVM_EXIT_MMIO, "an exit's number");

#define PM_KVM_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, pm_kvm_region2)

int pm_kvm_set_region(int vm, const pm_kvm_region *region) {
  struct kvm_userspace_memory_region request = {
      .slot = region->slot,
      .flags = region->flags,
      .guest_phys_addr = region->guest_physical_address,
      .memory_size = region->memory_size,
      .userspace_addr = region->userspace_address,
  };
  return PM_KVM_IOCTL(vm, KVM_SET_USER_MEMORY_REGION, &request);
}

int pm_kvm_set_region2(int vm, const pm_kvm_region *region) {
  pm_kvm_region2 request = {
      .slot = region->slot,
      .flags = region->flags,
      .guest_phys_addr = region->guest_physical_address,
      .memory_size = region->memory_size,
      .userspace_addr = region->userspace_address,
      .guest_memfd = UINT32_MAX,
  };
  return PM_KVM_IOCTL(vm, PM_KVM_SET_USER_MEMORY_REGION2, &request);
}

int pm_kvm_get_dirty_log(int vm, uint32_t slot, uint64_t *bitmap) {
  struct kvm_dirty_log request = {.slot = slot, .dirty_bitmap = bitmap};
  return PM_KVM_IOCTL(vm, KVM_GET_DIRTY_LOG, &request);
}

int pm_kvm_clear_dirty_log(
    int vm, uint32_t slot, uint64_t first, uint32_t count, const uint64_t *bitmap) {
  struct kvm_clear_dirty_log request = {
      .slot = slot, .num_pages = count, .first_page = first, .dirty_bitmap = (void *)bitmap};
  return PM_KVM_IOCTL(vm, KVM_CLEAR_DIRTY_LOG, &request);
}

// ---- The virtual CPU ----------------------------------------------------------------------------

int pm_kvm_create_vcpu(int vm, uint32_t index, int *fd) {
  return pm_kvm_descriptor(PM_KVM_IOCTL(vm, KVM_CREATE_VCPU, (unsigned long)index), fd);
}

static int pm_kvm_map_vcpu(int vcpu, size_t length, off_t offset, void **base) {
  intptr_t result = PM_SYSTEM_CALL(
      PM_HOST_CALL_MMAP, mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, offset));
  if (result < 0) return (int)result;
  pm_count_mappings(1);
  *base = (void *)result;
  return 0;
}

int pm_kvm_map_run(int kvm, int vcpu, size_t *length, void **run) {
  int size = PM_KVM_IOCTL(kvm, KVM_GET_VCPU_MMAP_SIZE, 0UL);
  if (size < 0) return size;
  int result = pm_kvm_map_vcpu(vcpu, (size_t)size, 0, run);
  if (result == 0) *length = (size_t)size;
  return result;
}

#if defined(__x86_64__)

#define PM_KVM_CPUID_ENTRIES 256

int pm_kvm_set_default_cpuid(int kvm, int vcpu) {
  // The header's last member has no size of its own; here it is given one.
  union {
    struct kvm_cpuid2 list;
    char bytes[sizeof(struct kvm_cpuid2)
               + PM_KVM_CPUID_ENTRIES * sizeof(struct kvm_cpuid_entry2)];
  } supported;
  memset(&supported, 0, sizeof supported);
  supported.list.nent = PM_KVM_CPUID_ENTRIES;
  int result = PM_KVM_IOCTL(kvm, KVM_GET_SUPPORTED_CPUID, &supported.list);
  return result != 0 ? result : PM_KVM_IOCTL(vcpu, KVM_SET_CPUID2, &supported.list);
}

#define PM_CR0_PE_ET_NE_WP_PG 0x80010031ULL
#define PM_CR4_PAE 0x20ULL
#define PM_EFER_LME_LMA 0x500ULL

int pm_kvm_set_user_mode(int vcpu, const pm_kvm_tables *tables) {
  struct kvm_sregs state;
  int result = PM_KVM_IOCTL(vcpu, KVM_GET_SREGS, &state);
  if (result != 0) return result;
  struct kvm_segment code = {
      .limit = UINT32_MAX, .selector = tables->code_selector, .type = 11, .present = 1, .dpl = 3,
      .s = 1, .l = 1, .g = 1};
  struct kvm_segment data = {
      .limit = UINT32_MAX, .selector = tables->data_selector, .type = 3, .present = 1, .dpl = 3,
      .db = 1, .s = 1, .g = 1};
  struct kvm_segment task = {
      .base = tables->task_segment, .limit = 0x67, .selector = tables->task_selector, .type = 11,
      .present = 1};
  state.cs = code;
  state.ds = state.es = state.fs = state.gs = state.ss = data;
  state.tr = task;
  state.gdt.base = tables->descriptor_table;
  state.gdt.limit = tables->descriptor_table_limit;
  state.idt.base = 0;
  state.idt.limit = 0;
  state.cr0 = PM_CR0_PE_ET_NE_WP_PG;
  state.cr3 = tables->page_table_root;
  state.cr4 = PM_CR4_PAE;
  state.efer = PM_EFER_LME_LMA;
  return PM_KVM_IOCTL(vcpu, KVM_SET_SREGS, &state);
}

// I/O privilege level 3, and the bit that is always set.
#define PM_RFLAGS 0x3002ULL

int pm_kvm_set_registers(int vcpu, const pm_kvm_registers *registers) {
  struct kvm_regs all = {
      .rip = registers->rip, .rax = registers->rax, .rbx = registers->rbx,
      .rsi = registers->rsi, .rdi = registers->rdi, .rflags = PM_RFLAGS};
  return PM_KVM_IOCTL(vcpu, KVM_SET_REGS, &all);
}

int pm_kvm_get_registers(int vcpu, pm_kvm_registers *registers) {
  struct kvm_regs all;
  int result = PM_KVM_IOCTL(vcpu, KVM_GET_REGS, &all);
  if (result != 0) return result;
  *registers = (pm_kvm_registers){
      .rip = all.rip, .rax = all.rax, .rbx = all.rbx, .rsi = all.rsi, .rdi = all.rdi};
  return 0;
}

#else

int pm_kvm_set_default_cpuid(int kvm, int vcpu) {
  (void)kvm, (void)vcpu;
  return -ENOSYS;
}

int pm_kvm_set_user_mode(int vcpu, const pm_kvm_tables *tables) {
  (void)vcpu, (void)tables;
  return -ENOSYS;
}

int pm_kvm_set_registers(int vcpu, const pm_kvm_registers *registers) {
  (void)vcpu, (void)registers;
  return -ENOSYS;
}

int pm_kvm_get_registers(int vcpu, pm_kvm_registers *registers) {
  (void)vcpu, (void)registers;
  return -ENOSYS;
}

#endif

// Enters the guest once, through the seam.
static int pm_kvm_enter(int vcpu) {
  int forced = pm_host_fault(PM_HOST_CALL_KVM_RUN);
  if (forced != 0) return forced;
  return ioctl(vcpu, KVM_RUN, 0UL) < 0 ? -errno : 0;
}

int pm_kvm_run(int vcpu, void *run, uint32_t unset_reason, pm_kvm_exit *exit) {
  struct kvm_run *shared = run;
  shared->exit_reason = unset_reason;
  int result = pm_kvm_enter(vcpu);
  *exit = (pm_kvm_exit){.reason = shared->exit_reason};
  if (exit->reason == KVM_EXIT_IO) exit->port = shared->io.port;
  if (exit->reason == KVM_EXIT_MMIO) {
    exit->is_write = shared->mmio.is_write != 0;
    exit->byte_count = shared->mmio.len;
    exit->guest_physical_address = shared->mmio.phys_addr;
  }
  return result;
}

void pm_kvm_set_immediate_exit(void *run, bool value) {
  struct kvm_run *shared = run;
  __atomic_store_n(&shared->immediate_exit, (uint8_t)value, __ATOMIC_SEQ_CST);
}

// ---- Kicks --------------------------------------------------------------------------------------

// A real-time signal, as those are the ones that libraries seldom take.
#define PM_KVM_KICK_SIGNAL (SIGRTMIN + 4)

static void pm_kvm_ignore_kick(int number) { (void)number; }

int pm_kvm_thread_id(void) { return (int)syscall(SYS_gettid); }

int pm_kvm_prepare_kicks(void) {
  struct sigaction action;
  if (sigaction(PM_KVM_KICK_SIGNAL, NULL, &action) != 0) return -errno;
  if (action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN) return 0;
  memset(&action, 0, sizeof action);
  action.sa_handler = pm_kvm_ignore_kick;
  return sigaction(PM_KVM_KICK_SIGNAL, &action, NULL) != 0 ? -errno : 0;
}

int pm_kvm_kick(int thread) {
  return syscall(SYS_tgkill, getpid(), thread, PM_KVM_KICK_SIGNAL) != 0 ? -errno : 0;
}

int pm_kvm_complete_mmio(int vcpu, void *run, uint8_t fill) {
  struct kvm_run *shared = run;
  int result = -EPROTO;
  pm_kvm_set_immediate_exit(run, true);
  // An access that crosses a border is asked for in pieces: a round each.
  for (int round = 0; round < 16; round++) {
    if (!shared->mmio.is_write) memset(shared->mmio.data, fill, sizeof shared->mmio.data);
    result = pm_kvm_enter(vcpu);
    if (result != 0 || shared->exit_reason != KVM_EXIT_MMIO) break;
    result = -EPROTO;
  }
  pm_kvm_set_immediate_exit(run, false);
  // Nothing was run: that is how it ends.
  return result == -EINTR ? 0 : result;
}

// ---- The dirty ring -----------------------------------------------------------------------------

// As in the header since Linux 5.11; written out because a header may be older.
typedef struct {
  _Atomic(uint32_t) flags;
  uint32_t slot;
  uint64_t offset;
} pm_kvm_ring_entry;
_Static_assert(
    sizeof(pm_kvm_ring_entry) == PM_KVM_DIRTY_RING_ENTRY_SIZE, "the kernel's size of an entry");

#define PM_KVM_RING_PAGE_OFFSET 64
#define PM_KVM_RING_DIRTY 1U
#define PM_KVM_RING_HARVESTED 2U
#define PM_KVM_RESET_DIRTY_RINGS _IO(KVMIO, 0xc7)

int pm_kvm_map_dirty_ring(int vcpu, size_t length, void **ring) {
  return pm_kvm_map_vcpu(vcpu, length, PM_KVM_RING_PAGE_OFFSET * sysconf(_SC_PAGESIZE), ring);
}

bool pm_kvm_harvest_dirty_page(void *ring, size_t index, pm_kvm_dirty_page *page) {
  pm_kvm_ring_entry *entry = (pm_kvm_ring_entry *)ring + index;
  if (atomic_load_explicit(&entry->flags, memory_order_acquire) != PM_KVM_RING_DIRTY) return false;
  *page = (pm_kvm_dirty_page){.slot = entry->slot, .offset = entry->offset};
  atomic_store_explicit(&entry->flags, PM_KVM_RING_HARVESTED, memory_order_release);
  return true;
}

int pm_kvm_reset_dirty_rings(int vm, uint32_t *count) {
  int result = PM_KVM_IOCTL(vm, PM_KVM_RESET_DIRTY_RINGS, 0UL);
  if (result < 0) return result;
  *count = (uint32_t)result;
  return 0;
}

// ---- Mirroring a host mapping -------------------------------------------------------------------

int pm_kvm_duplicate(int fd, int *duplicate) {
  return pm_kvm_descriptor(
      (int)PM_SYSTEM_CALL(PM_HOST_CALL_DUP, fcntl(fd, F_DUPFD_CLOEXEC, 0)), duplicate);
}

int pm_kvm_map_file_at(void *at, size_t length, int fd, uint64_t offset, bool writable) {
  int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  intptr_t result = PM_SYSTEM_CALL(
      PM_HOST_CALL_MMAP,
      mmap(at, length, protection, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, (off_t)offset));
  return result < 0 ? (int)result : 0;
}

int pm_kvm_protect(void *base, size_t length, pm_kvm_protection protection) {
  static const int bits[] = {
      [PM_KVM_PROTECTION_NONE] = PROT_NONE,
      [PM_KVM_PROTECTION_READ] = PROT_READ,
      [PM_KVM_PROTECTION_READ_WRITE] = PROT_READ | PROT_WRITE,
  };
  return (int)PM_SYSTEM_CALL(PM_HOST_CALL_MPROTECT, mprotect(base, length, bits[protection]));
}

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

int pm_kvm_move_pages(void *from, size_t length, void *to) {
  intptr_t result = PM_SYSTEM_CALL(
      PM_HOST_CALL_MMAP,
      mremap(from, length, length, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to));
  return result < 0 ? (int)result : 0;
}
