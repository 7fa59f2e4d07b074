/* Compiled as C99, C11 and C++ with every warning an error: what an embedder writes. */
#ifndef __cplusplus
#define _GNU_SOURCE
#endif
#include <physmem.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIB (1u << 20)

static int failures;

#define EXPECT(expression, wanted)                                                              \
  do {                                                                                          \
    long long pm_got = (long long)(expression);                                                 \
    if (pm_got != (long long)(wanted)) {                                                        \
      failures++;                                                                               \
      printf("%s:%d: %s is %lld, not %lld: %s\n", __FILE__, __LINE__, #expression, pm_got,      \
             (long long)(wanted), pm_last_error());                                             \
    }                                                                                           \
  } while (0)

/* ---- A device: a register of 8 bytes ------------------------------------------------------------------ */

typedef struct device {
  pm_machine *machine;
  uint64_t value;
  int released;
} device;

static int device_read(void *opaque, uint64_t offset, uint32_t width, uint64_t *value) {
  device *self = (device *)opaque;
  if (offset >= 8) return -EIO;
  *value = self->value >> (8 * offset);
  if (width < 8) *value &= ((uint64_t)1 << (8 * width)) - 1;
  return 0;
}

static int device_write(void *opaque, uint64_t offset, uint32_t width, uint64_t value) {
  device *self = (device *)opaque;
  if (offset != 0 || width != 8) return -EACCES;
  self->value = value;
  /* A device may use the memory: a transfer. */
  return pm_store(self->machine, 0x8000, 8, value + 1);
}

static void device_release(void *opaque) { ((device *)opaque)->released++; }

static void devices(pm_machine *machine) {
  device own;
  pm_mmio_ops ops = PM_MMIO_OPS_INIT;
  uint64_t value = 0;
  memset(&own, 0, sizeof own);
  own.machine = machine;
  ops.read = device_read;
  ops.write = device_write;
  ops.release = device_release;
  EXPECT(pm_mmio_add(machine, 0xd0000001, 4096, &ops, &own), -EINVAL);
  EXPECT(pm_mmio_add(machine, 0, 4096, &ops, &own), -EEXIST);
  EXPECT(own.released, 0);
  EXPECT(pm_mmio_add(machine, 0xd0000000, 4096, &ops, &own), 0);
  EXPECT(pm_store(machine, 0xd0000000, 8, 41), 0);
  EXPECT(pm_load(machine, 0xd0000000, 8, &value), 0);
  EXPECT(value, 41);
  EXPECT(pm_load(machine, 0x8000, 8, &value), 0);
  EXPECT(value, 42);
  EXPECT(pm_store(machine, 0xd0000008, 8, 1), -EACCES);
  EXPECT(pm_load(machine, 0xd0000010, 4, &value), -EIO);
  EXPECT(pm_atomic_load(machine, 0xd0000000, 8, &value), -EACCES);
  EXPECT(pm_region_remove(machine, 0xd0000000), 0);
  EXPECT(own.released, 1);
  EXPECT(pm_load(machine, 0xd0000000, 8, &value), -EFAULT);
}

static void accesses(pm_machine *machine) {
  char text[16] = "";
  uint64_t value = 0, gpa = 0;
  void *hva = NULL;
  EXPECT(pm_write(machine, 0x1ffe, "abcd", 5), 0);
  EXPECT(pm_read(machine, 0x1ffe, text, 5), 0);
  EXPECT(strcmp(text, "abcd"), 0);
  EXPECT(pm_read(machine, 64 * MIB - 2, text, 4), -EFAULT);
  EXPECT(strstr(pm_last_error(), "0x4000000") != NULL, 1);
  EXPECT(pm_read(machine, UINT64_MAX, NULL, 0), 0);
  EXPECT(pm_read(machine, 0, NULL, 1), -EINVAL);
  EXPECT(pm_read(machine, 0, text, (size_t)-1), -EFAULT);
  EXPECT(pm_fill(machine, 0x3000, 0xa5, 4096), 0);
  EXPECT(pm_fill(machine, 0x3000, 0xa5, UINT64_MAX), -EFAULT);
  EXPECT(pm_load(machine, 0x3ffc, 4, &value), 0);
  EXPECT(value, 0xa5a5a5a5u);
  EXPECT(pm_load(machine, 0x3000, 3, &value), -EINVAL);
  EXPECT(pm_load(machine, 0x3001, 8, &value), 0);
  EXPECT(pm_atomic_load(machine, 0x3001, 8, &value), -EINVAL);
  EXPECT(pm_atomic_store(machine, 0x5000, 4, 7), 0);
  value = 8;
  EXPECT(pm_atomic_cas(machine, 0x5000, 4, &value, 9), 0);
  EXPECT(value, 7);
  EXPECT(pm_atomic_cas(machine, 0x5000, 4, &value, 9), 1);
  EXPECT(pm_atomic_load(machine, 0x5000, 4, &value), 0);
  EXPECT(value, 9);
  EXPECT(pm_translate(machine, 0x1ffe, 5, PM_PROT_READ | PM_PROT_WRITE, &hva), 0);
  EXPECT(hva != NULL && strcmp((char *)hva, "abcd"), 0);
  EXPECT(((uintptr_t)hva - 0x1ffe) % (2 * MIB), 0);
  EXPECT(pm_translate(machine, 64 * MIB - 1, 2, PM_PROT_READ, &hva), -EFAULT);
  EXPECT(pm_translate_host(machine, hva, &gpa), 0);
  EXPECT(gpa, 0x1ffe);
  EXPECT(pm_translate_host(machine, &gpa, &gpa), -EFAULT);
}

static void regions(pm_machine *machine) {
  pm_region list[4];
  pm_region region = PM_REGION_INIT;
  uint32_t count = 0;
  uint64_t before, after;
  char text[4] = "";
  memset(list, 0, sizeof list);
  EXPECT(pm_regions_generation(machine, NULL), -EINVAL);
  EXPECT(pm_regions_generation(machine, &before), 0);
  EXPECT(pm_regions(machine, NULL, &count), -ENOBUFS);
  EXPECT(count, 1);
  list[0].size = sizeof list[0];
  count = 4;
  EXPECT(pm_regions(machine, list, &count), 0);
  EXPECT(list[0].len, 64 * MIB);
  EXPECT(list[0].fd >= 0, 1);
  list[0].size = 8;
  EXPECT(pm_regions(machine, list, &count), -EINVAL);

  region.gpa = 64 * MIB - 4096;
  region.len = 8192;
  EXPECT(pm_region_add(machine, &region), -EEXIST);
  EXPECT(strstr(pm_last_error(), "[0x3fff000, 0x4001000)") != NULL, 1);
  EXPECT(strstr(pm_last_error(), "[0x0, 0x4000000)") != NULL, 1);
  region.gpa = 64 * MIB + 1;
  EXPECT(pm_region_add(machine, &region), -EINVAL);
  region.gpa = 64 * MIB;
  region.len = 0;
  EXPECT(pm_region_add(machine, &region), -EINVAL);
  region.len = UINT64_MAX - 4095;
  EXPECT(pm_region_add(machine, &region), -EINVAL);
  region.len = 4096;
  region.kind = PM_REGION_ROM;
  EXPECT(pm_region_add(machine, &region), 0);
  EXPECT(pm_write(machine, 64 * MIB, "rom", 4), -EACCES);
  EXPECT(pm_rom_write(machine, 64 * MIB, "rom", 4), 0);
  EXPECT(pm_read(machine, 64 * MIB, text, 4), 0);
  EXPECT(strcmp(text, "rom"), 0);
  EXPECT(pm_region_remove(machine, 64 * MIB + 4096), -ENOENT);
  EXPECT(pm_region_remove(machine, 64 * MIB), 0);
  EXPECT(pm_regions_generation(machine, &after), 0);
  EXPECT(after - before, 2);
  region.size = sizeof region - 1;
  EXPECT(pm_region_add(machine, &region), -EINVAL);
}

static void persistent(pm_machine *machine) {
  pm_region region = PM_REGION_INIT;
  char text[8] = "";
  FILE *file = tmpfile();
  int fd = file == NULL ? -1 : fileno(file);
  EXPECT(fd >= 0, 1);
  EXPECT(ftruncate(fd, 8192), 0);
  region.kind = PM_REGION_PMEM;
  region.gpa = 128 * MIB;
  region.len = 8192;
  EXPECT(pm_region_add(machine, &region), -EINVAL);
  region.fd = fd;
  region.fd_offset = 4096;
  EXPECT(pm_region_add(machine, &region), -EINVAL);
  region.len = 4096;
  EXPECT(pm_region_add(machine, &region), 0);
  EXPECT(pm_write(machine, 128 * MIB, "kept", 5), 0);
  EXPECT(pread(fd, text, 5, 4096), 5);
  EXPECT(strcmp(text, "kept"), 0);
  EXPECT(pm_region_remove(machine, 128 * MIB), 0);
  if (file != NULL) EXPECT(fclose(file), 0);
}

static void dirt(pm_machine *machine) {
  pm_harvest *harvest = NULL, *other = NULL;
  uint64_t pages = 0, gpa = 0, len = 0;
  pm_merge_result merge = PM_MERGE_RESULT_INIT;
  pm_machine_info info = PM_MACHINE_INFO_INIT;
  EXPECT(pm_dirty_begin(machine, &harvest), -ENODATA);
  EXPECT(pm_dirty_mark(machine, 0, 1), -ENODATA);
  EXPECT(pm_dirty_disable(machine), -EALREADY);
  EXPECT(pm_dirty_enable(machine), 0);
  EXPECT(pm_dirty_enable(machine), -EALREADY);
  EXPECT(pm_write(machine, 0x4ffe, "dirty", 6), 0);
  EXPECT(pm_store(machine, 0x9000, 8, 1), 0);
  EXPECT(pm_dirty_mark(machine, 0x20000, 4097), 0);
  EXPECT(pm_dirty_begin(machine, &harvest), 0);
  EXPECT(pm_dirty_begin(machine, &other), -EBUSY);
  EXPECT(pm_dirty_disable(machine), -EBUSY);
  EXPECT(pm_dirty_count(harvest, &pages), 0);
  EXPECT(pages, 5);
  EXPECT(pm_dirty_next(harvest, &gpa, &len), 1);
  EXPECT(gpa, 0x4000);
  EXPECT(len, 0x2000);
  gpa += len;
  EXPECT(pm_dirty_next(harvest, &gpa, &len), 1);
  EXPECT(gpa, 0x9000);
  gpa += len;
  EXPECT(pm_dirty_next(harvest, &gpa, &len), 1);
  EXPECT(gpa, 0x20000);
  EXPECT(len, 0x2000);
  gpa += len;
  EXPECT(pm_dirty_next(harvest, &gpa, &len), 0);
  EXPECT(pm_dirty_abort(harvest), 0);
  EXPECT(pm_dirty_abort(harvest), -EBADF);
  EXPECT(pm_dirty_begin(machine, &harvest), 0);
  EXPECT(pm_dirty_count(harvest, &pages), 0);
  EXPECT(pages, 5);
  EXPECT(pm_dirty_commit(harvest), 0);
  EXPECT(pm_dirty_begin(machine, &harvest), 0);
  EXPECT(pm_dirty_count(harvest, &pages), 0);
  EXPECT(pages, 0);
  EXPECT(pm_dirty_commit(harvest), 0);
  EXPECT(pm_dirty_disable(machine), 0);

  EXPECT(pm_balloon_inflate(machine, 0x100000, 2 * MIB), 0);
  EXPECT(pm_balloon_inflate(machine, 0x100001, 4096), -EINVAL);
  EXPECT(pm_machine_get_info(machine, &info), 0);
  EXPECT(info.ballooned, 2 * MIB);
  EXPECT(pm_balloon_deflate(machine, 0x100000, 2 * MIB), 0);
  EXPECT(pm_fill(machine, 0x200000, 0, 4096), 0);
  EXPECT(pm_merge(machine, &merge), 0);
  EXPECT(merge.zero > 0, 1);
}

static void pages(pm_machine *machine) {
  pm_cpu *cpu = NULL, *other = NULL;
  uint64_t pfn = 0, given = 0;
  int32_t count = 0;
  char line[128] = "";
  pm_ref_table_info table = PM_REF_TABLE_INFO_INIT;
  pm_machine_info info = PM_MACHINE_INFO_INIT;
  EXPECT(pm_cpu_claim(machine, 7, &cpu), -ENODEV);
  EXPECT(pm_cpu_claim(machine, 0, &cpu), 0);
  EXPECT(pm_cpu_claim(machine, 0, &other), -EBUSY);
  EXPECT(pm_alloc_pages(cpu, 11, 0xcc0, -1, &pfn), -EINVAL);
  EXPECT(pm_alloc_pages(cpu, 3, 0xcc0, 9, &pfn), -ENODEV);
  EXPECT(pm_alloc_pages(cpu, 3, 0xcc0, -1, &pfn), 0);
  EXPECT(pm_page_refcount(machine, pfn, &count), 0);
  EXPECT(count, 1);
  EXPECT(pm_try_get_page(machine, pfn), 1);
  EXPECT(pm_try_get_page(machine, pfn + 1), 0);
  EXPECT(pm_get_page(machine, pfn), 0);
  EXPECT(pm_ref_table(machine, &table), 0);
  EXPECT(*(const int32_t *)(const void *)((const char *)table.base
                                          + (pfn - table.first_pfn) * table.stride), 3);
  EXPECT(pm_put_page(cpu, pfn), 0);
  EXPECT(pm_put_page(cpu, pfn), 0);
  EXPECT(pm_free_pages(cpu, pfn + 1, 3), -EINVAL);
  EXPECT(pm_free_pages(cpu, UINT64_MAX, 0), -EINVAL);
  EXPECT(pm_free_pages(cpu, pfn, UINT32_MAX), -EINVAL);
  EXPECT(pm_free_pages(cpu, pfn, 3), 0);
  EXPECT(pm_machine_get_info(machine, &info), 0);
  EXPECT(info.finding_count, 1);  /* the order of 11 */
  EXPECT(pm_free_pages(cpu, pfn, 3), 0);
  EXPECT(pm_machine_get_info(machine, &info), 0);
  EXPECT(info.finding_count > 1, 1);
  EXPECT(pm_finding(machine, 1, line, sizeof line) > 0, 1);
  EXPECT(pm_finding(machine, 1, line, 4) > 4, 1);
  EXPECT(strlen(line), 3);
  EXPECT(pm_finding(machine, 1000000, line, sizeof line), -ENOENT);
  EXPECT(pm_report_free_pages(cpu, 11, UINT64_MAX, &given), -EINVAL);
  EXPECT(pm_cpu_release(cpu), 0);
  EXPECT(pm_cpu_release(cpu), -EBADF);
}

static void reporting(void) {
  pm_machine *machine = NULL;
  pm_cpu *cpu = NULL;
  uint64_t given = 0;
  EXPECT(pm_open(64 * MIB, &machine), 0);
  EXPECT(pm_cpu_claim(machine, 0, &cpu), 0);
  EXPECT(pm_report_free_pages(cpu, 9, 8 * MIB, &given), 0);
  EXPECT(given, 8 * MIB);
  /* The machine's end is the CPU's. */
  EXPECT(pm_close(machine), 0);
  EXPECT(pm_cpu_release(cpu), -EBADF);
}

static void forking(void) {
  pm_machine *machine = NULL, *copy = NULL;
  pm_cpu *cpu = NULL;
  pm_region region = PM_REGION_INIT;
  uint64_t value = 0, pfn = 0;
  uint32_t count = 1;
  int32_t references = 0;
  EXPECT(pm_open(64 * MIB, &machine), 0);
  EXPECT(pm_store(machine, 0x7000, 8, 1), 0);
  EXPECT(pm_cpu_claim(machine, 0, &cpu), 0);
  EXPECT(pm_alloc_pages(cpu, 0, 0xcc0, -1, &pfn), 0);
  EXPECT(pm_fork(machine, &copy), -EBUSY);
  EXPECT(pm_cpu_release(cpu), 0);
  EXPECT(pm_fork(machine, NULL), -EINVAL);
  EXPECT(pm_fork(machine, &copy), 0);
  EXPECT(pm_store(machine, 0x7000, 8, 2), 0);
  EXPECT(pm_load(copy, 0x7000, 8, &value), 0);
  EXPECT(value, 1);
  EXPECT(pm_store(copy, 0x7000, 8, 3), 0);
  EXPECT(pm_load(machine, 0x7000, 8, &value), 0);
  EXPECT(value, 2);
  EXPECT(pm_get_page(copy, pfn), 0);
  EXPECT(pm_page_refcount(copy, pfn, &references), 0);
  EXPECT(references, 2);
  EXPECT(pm_page_refcount(machine, pfn, &references), 0);
  EXPECT(references, 1);
  EXPECT(pm_regions(machine, &region, &count), 0);
  EXPECT(region.fd, -1);
  EXPECT(pm_close(machine), 0);
  EXPECT(pm_load(copy, 0x7000, 8, &value), 0);
  EXPECT(value, 3);
  EXPECT(pm_close(copy), 0);
}

static void handles(void) {
  pm_machine *machine = NULL, *stale = NULL;
  pm_options options = PM_OPTIONS_INIT;
  pm_cpu *cpu = NULL;
  char line[512];
  EXPECT(pm_open(1, &machine), -EINVAL);
  EXPECT(pm_open(64 * MIB, NULL), -EINVAL);
  EXPECT(pm_open_options(NULL, &machine), -EINVAL);
  options.memory = 64 * MIB;
  options.size = 4;
  EXPECT(pm_open_options(&options, &machine), -EINVAL);
  options.size = sizeof options;
  options.huge_page_size = 2 * MIB;
  EXPECT(pm_open_options(&options, &machine), -EOPNOTSUPP);
  options.huge_page_size = 0;
  options.numa_node = 4000;
  EXPECT(pm_open_options(&options, &machine), -ENODEV);
  options.numa_node = -1;
  options.cpus = 0;
  EXPECT(pm_open_options(&options, &machine), -EINVAL);
  options.cpus = 2;
  options.refcount_layout = PM_REFCOUNT_LAYOUT_STRIDED;
  options.free_pages_model = PM_FREE_PAGES_BEFORE_TAIL_FIX;
  EXPECT(pm_open_options(&options, &machine), 0);
  EXPECT(pm_cpu_claim(machine, 1, &cpu), 0);
  /* Of another kind. */
  EXPECT(pm_close((pm_machine *)(void *)cpu), -EBADF);
  EXPECT(pm_cpu_release((pm_cpu *)(void *)machine), -EBADF);
  EXPECT(pm_cpu_release(cpu), 0);
  EXPECT(pm_qemu_args(machine, line, sizeof line) > 0, 1);
  EXPECT(strstr(line, "memory-backend-file") != NULL, 1);
  stale = machine;
  EXPECT(pm_close(machine), 0);
  EXPECT(pm_open(64 * MIB, &machine), 0);
  EXPECT(machine == stale, 0);
  EXPECT(pm_read(stale, 0, line, 1), -EBADF);
  EXPECT(pm_write(NULL, 0, "x", 1), -EBADF);
  EXPECT(pm_close(stale), -EBADF);
  EXPECT(pm_close(machine), 0);
  EXPECT(pm_map_kvm(machine, 0, 0, 0), -EBADF);
}

int main(void) {
  pm_machine *machine = NULL;
  EXPECT(pm_abi_version(), PM_ABI_VERSION);
  EXPECT(strlen(pm_last_error()), 0);
  EXPECT(pm_open(64 * MIB, &machine), 0);
  if (machine == NULL) return 1;
  regions(machine);
  accesses(machine);
  devices(machine);
  persistent(machine);
  dirt(machine);
  pages(machine);
  EXPECT(pm_map_kvm(machine, 0, 0, 0) < 0, 1);
  EXPECT(pm_unmap_kvm(machine, 0, 0), -ENOENT);
  EXPECT(pm_collect_kvm(machine, 0, 0), -ENOENT);
  EXPECT(pm_vhost_user_add(machine, -1, 0) < 0, 1);
  EXPECT(pm_close(machine), 0);
  reporting();
  forking();
  handles();
  if (failures == 0) puts("consumer: all as physmem.h says");
  return failures != 0;
}
