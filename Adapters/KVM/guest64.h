/* A 64-bit guest at privilege level 3, for examples and tests: the smallest one whose instructions and memory
 * accesses are the processor's. (A guest in real mode or at level 0 may be run by KVM's instruction emulator,
 * which reaches memory by other ways than the MMU.) Its first GiB is mapped to itself in pages of 2 MiB.
 *
 * Functions return 0 or a negative errno. */
#ifndef GUEST64_H
#define GUEST64_H

#include <errno.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>

#include "physmem.h"

/* What guest64_write_tables takes: page tables of three levels, descriptors, a task segment. */
#define GUEST64_TABLES_SIZE 0x5000u

enum { guest64_data = 0x08 | 3, guest64_code = 0x10 | 3, guest64_task = 0x18 };

/* Writes the tables to `at`, a multiple of 4096. */
static inline int guest64_write_tables(pm_machine *machine, uint64_t at) {
  /* Present, writable, user, accessed; pages are large and dirty besides. As accessed and dirty are set already,
   * the processor itself never writes into the tables. */
  const uint64_t table = 0x27, page = 0xe7;
  uint64_t entries[512], descriptors[5] = {0};
  for (uint64_t i = 0; i < 512; i++) entries[i] = i << 21 | page;
  descriptors[guest64_data / 8] = 0x00cff3000000ffff;
  descriptors[guest64_code / 8] = 0x00affb000000ffff;
  descriptors[guest64_task / 8] = 0x00008b0000000067 | (at + 0x4000) << 16;
  int result = pm_store(machine, at, 8, (at + 0x1000) | table);
  if (result == 0) result = pm_store(machine, at + 0x1000, 8, (at + 0x2000) | table);
  if (result == 0) result = pm_write(machine, at + 0x2000, entries, sizeof entries);
  if (result == 0) result = pm_write(machine, at + 0x3000, descriptors, sizeof descriptors);
  return result;
}

/* Puts a vCPU into 64-bit mode at level 3 with the tables at `tables`; `in` and `out` are allowed. */
static inline int guest64_enter(int kvm, int vcpu, uint64_t tables) {
  enum { capacity = 256 };
  uint64_t buffer[(sizeof(struct kvm_cpuid2) + capacity * sizeof(struct kvm_cpuid_entry2)) / 8 + 1] = {0};
  struct kvm_cpuid2 *cpuid = (struct kvm_cpuid2 *)buffer;
  cpuid->nent = capacity;
  if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) != 0) return -errno;
  if (ioctl(vcpu, KVM_SET_CPUID2, cpuid) != 0) return -errno;
  struct kvm_sregs state;
  if (ioctl(vcpu, KVM_GET_SREGS, &state) != 0) return -errno;
  struct kvm_segment code = {
      .limit = UINT32_MAX, .selector = guest64_code, .type = 11, .present = 1, .dpl = 3, .s = 1, .l = 1, .g = 1};
  struct kvm_segment data = code, task = {
      .base = tables + 0x4000, .limit = 0x67, .selector = guest64_task, .type = 11, .present = 1};
  data.selector = guest64_data, data.type = 3, data.l = 0, data.db = 1;
  state.cs = code, state.tr = task;
  state.ds = state.es = state.fs = state.gs = state.ss = data;
  state.gdt.base = tables + 0x3000, state.gdt.limit = 5 * 8 - 1;
  state.idt.base = 0, state.idt.limit = 0;
  state.cr0 = 0x80010031; /* PG WP NE ET PE */
  state.cr3 = tables;
  state.cr4 = 0x20;   /* PAE */
  state.efer = 0x500; /* LMA LME */
  return ioctl(vcpu, KVM_SET_SREGS, &state) != 0 ? -errno : 0;
}

/* The flags of a guest64 vCPU: I/O privilege level 3, and the bit that is always set. */
#define GUEST64_RFLAGS 0x3002u

/* Answers KVM_EXIT_MMIO from the machine's regions: its MMIO handlers are called. */
static inline int guest64_mmio(pm_machine *machine, struct kvm_run *run) {
  uint64_t value = 0;
  if (run->mmio.is_write) {
    memcpy(&value, run->mmio.data, run->mmio.len);
    return pm_store(machine, run->mmio.phys_addr, run->mmio.len, value);
  }
  int result = pm_load(machine, run->mmio.phys_addr, run->mmio.len, &value);
  memcpy(run->mmio.data, &value, run->mmio.len);
  return result;
}

#endif
