/* Boots a guest of the real KVM whose memory is physmem's: it adds up words that the host wrote, stores the sum,
 * and tells it to a device. cc boot.c $(pkg-config --cflags --libs physmem) */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "guest64.h"

#define CHECK(condition) \
  ((condition) ? (void)0 : (fprintf(stderr, "line %d: %s: %s\n", __LINE__, #condition, pm_last_error()), exit(1)))

enum { tables = 0x10000, code = 0x1000, words = 0x200000, sum = 0x300000, device = 0x30000000, done = 0xf8 };

static const unsigned char program[] = {
    0x31, 0xc0,             /*       xor eax, eax     */
    0x48, 0x03, 0x06,       /* next: add rax, [rsi]   */
    0x48, 0x83, 0xc6, 0x08, /*       add rsi, 8       */
    0x48, 0xff, 0xc9,       /*       dec rcx          */
    0x75, 0xf4,             /*       jnz next         */
    0x48, 0x89, 0x07,       /*       mov [rdi], rax   */
    0x48, 0x89, 0x03,       /*       mov [rbx], rax   */
    0xe6, done};            /*       out done, al     */

static int told(void *value_told, uint64_t offset, uint32_t width, uint64_t value) {
  return offset == 0 && width == 8 ? (*(uint64_t *)value_told = value, 0) : -EIO;
}

int main(void) {
  int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm, vcpu;
  if (kvm < 0 && (errno == ENOENT || errno == ENODEV || errno == ENXIO)) return puts("/dev/kvm is missing"), 4;
  pm_machine *machine;
  uint64_t value_told = 0, stored, pages = 0, gpa = 0, len;
  pm_mmio_ops ops = {.size = sizeof ops, .write = told};
  CHECK(pm_open(64 << 20, &machine) == 0 && pm_mmio_add(machine, device, 4096, &ops, &value_told) == 0);
  CHECK(guest64_write_tables(machine, tables) == 0 && pm_write(machine, code, program, sizeof program) == 0);
  for (uint64_t i = 0; i < 1000; i++) CHECK(pm_store(machine, words + 8 * i, 8, i) == 0);
  CHECK((vm = ioctl(kvm, KVM_CREATE_VM, 0)) >= 0 && (vcpu = ioctl(vm, KVM_CREATE_VCPU, 0)) >= 0);
  CHECK(pm_map_kvm(machine, vm, 0, PM_KVM_LOG_DIRTY_PAGES) == 1 && guest64_enter(kvm, vcpu, tables) == 0);
  struct kvm_run *run = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
  CHECK(run != MAP_FAILED && pm_dirty_enable(machine) == 0);
  /* KVM logs a page when it makes it writable: in the first round those that the guest read, too. */
  for (uint64_t round = 0; round < 2; round++, gpa = 0) {
    pm_harvest *harvest;
    CHECK(pm_store(machine, words, 8, 7 * round) == 0 && pm_collect_kvm(machine, vm, 0) == 0);
    CHECK(pm_dirty_begin(machine, &harvest) == 0 && pm_dirty_commit(harvest) == 0);
    struct kvm_regs start = {.rip = code, .rsi = words, .rcx = 1000, .rdi = sum, .rbx = device};
    start.rflags = GUEST64_RFLAGS;
    CHECK(ioctl(vcpu, KVM_SET_REGS, &start) == 0 && ioctl(vcpu, KVM_RUN, 0) == 0);
    CHECK(run->exit_reason == KVM_EXIT_MMIO && guest64_mmio(machine, run) == 0);
    CHECK(ioctl(vcpu, KVM_RUN, 0) == 0 && run->exit_reason == KVM_EXIT_IO && run->io.port == done);
    CHECK(pm_load(machine, sum, 8, &stored) == 0 && stored == 999 * 1000 / 2 + 7 * round && value_told == stored);
    CHECK(pm_collect_kvm(machine, vm, 0) == 0 && pm_dirty_begin(machine, &harvest) == 0);
    CHECK(pm_dirty_count(harvest, &pages) == 0 && pm_dirty_next(harvest, &gpa, &len) == 1);
    CHECK(pm_dirty_commit(harvest) == 0 && (round == 0 || (pages == 1 && gpa == sum && len == 4096)));
    printf("the guest stored %llu at %#x and told the device", (unsigned long long)stored, sum);
    printf("; dirty pages: %llu\n", (unsigned long long)pages);
  }
  CHECK(pm_unmap_kvm(machine, vm, 0) == 0 && pm_close(machine) == 0);
}
