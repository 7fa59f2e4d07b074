/* What physmem-unicorn.h promises, on a real engine. Prints a line for each check; ends at the first that fails. */
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <time.h>

#include "physmem-unicorn.h"

#define CHECK(condition) \
  ((condition) ? (void)0 : (fprintf(stderr, "line %d: %s: %s\n", __LINE__, #condition, pm_last_error()), exit(1)))

#define GIB ((uint64_t)1 << 30)

enum { code = 0x1000, data = 0x200000, stack = 0x8000, rom = 0x40000000, first = 0x50000000 };

static const unsigned char store_rax[] = {0x48, 0x89, 0x07};                   /* mov [rdi], rax */
static const unsigned char load_rax[] = {0x48, 0x8b, 0x07};                    /* mov rax, [rdi] */
static const unsigned char store_al_then_inc[] = {0x88, 0x07, 0x48, 0xff, 0xc3}; /* mov [rdi], al; inc rbx */
static const unsigned char load_al_then_inc[] = {0x8a, 0x07, 0x48, 0xff, 0xc3};  /* mov al, [rdi]; inc rbx */

typedef struct {
  pm_machine *machine;
  uc_engine *engine;
  pm_uc *uc;
} world;

static world open_world(uint32_t flags) {
  world it;
  CHECK(pm_open(64 << 20, &it.machine) == 0);
  CHECK(uc_open(UC_ARCH_X86, UC_MODE_64, &it.engine) == UC_ERR_OK);
  CHECK(pm_uc_attach(it.machine, it.engine, flags, &it.uc) == 0);
  return it;
}

static void close_world(world it) {
  CHECK(pm_uc_detach(it.uc) == 0 && uc_close(it.engine) == UC_ERR_OK && pm_close(it.machine) == 0);
}

static void set(uc_engine *engine, int name, uint64_t value) {
  CHECK(uc_reg_write(engine, name, &value) == UC_ERR_OK);
}

static uint64_t get(uc_engine *engine, int name) {
  uint64_t value = 0;
  CHECK(uc_reg_read(engine, name, &value) == UC_ERR_OK);
  return value;
}

/* Runs `count` bytes of code with RDI = `rdi` and RAX = `rax`. */
static int run(world it, const unsigned char *bytes, size_t count, uint64_t rdi, uint64_t rax) {
  CHECK(pm_uc_write_code(it.uc, code, bytes, count) == 0);
  set(it.engine, UC_X86_REG_RDI, rdi);
  set(it.engine, UC_X86_REG_RAX, rax);
  set(it.engine, UC_X86_REG_RBX, 0);
  set(it.engine, UC_X86_REG_RSP, stack);
  return pm_uc_run(it.uc, code, code + count, 0, 1000);
}

#define RUN(it, bytes, rdi, rax) run(it, bytes, sizeof bytes, rdi, rax)

static uint64_t load(pm_machine *machine, uint64_t gpa) {
  uint64_t value = 0;
  CHECK(pm_load(machine, gpa, 8, &value) == 0);
  return value;
}

static void check_regions(void) {
  world it = open_world(0);
  pm_region more = PM_REGION_INIT;
  more.gpa = 4 * GIB, more.len = 2 << 20;
  CHECK(RUN(it, store_rax, more.gpa, 1) == -EFAULT && pm_region_add(it.machine, &more) == 0);
  more.kind = PM_REGION_ROM, more.gpa = rom, more.len = 65536;
  CHECK(pm_region_add(it.machine, &more) == 0);
  CHECK(pm_uc_detach(it.uc) == 0 && pm_uc_attach(it.machine, it.engine, 0, &it.uc) == 0);
  CHECK(RUN(it, store_rax, 4 * GIB + 8, 0x1122334455667788) == 0);
  CHECK(load(it.machine, 4 * GIB + 8) == 0x1122334455667788);
  CHECK(pm_store(it.machine, 64 * 1024 * 1024 - 8, 8, 99) == 0);
  CHECK(RUN(it, load_rax, 64 * 1024 * 1024 - 8, 0) == 0 && get(it.engine, UC_X86_REG_RAX) == 99);
  CHECK(pm_uc_write_code(it.uc, rom, load_rax, sizeof load_rax) == 0);
  set(it.engine, UC_X86_REG_RDI, rom);
  CHECK(pm_uc_run(it.uc, rom, rom + sizeof load_rax, 0, 0) == 0);
  CHECK((get(it.engine, UC_X86_REG_RAX) & 0xffffff) == 0x078b48);
  CHECK(RUN(it, store_rax, rom, 0) == -EACCES && load(it.machine, rom) == 0x078b48);
  CHECK(pm_uc_detach(it.uc) == 0 && pm_region_remove(it.machine, 4 * GIB) == 0);
  CHECK(pm_uc_attach(it.machine, it.engine, 0, &it.uc) == 0 && RUN(it, store_rax, 4 * GIB, 1) == -EFAULT);
  close_world(it);
  puts("regions: RAM at two places, ROM that runs and refuses stores, one added, one removed");
}

static void check_overlap(void) {
  world it = open_world(0);
  pm_uc *again = NULL;
  CHECK(pm_uc_attach(it.machine, it.engine, 0, &again) == -EEXIST && again == NULL);
  CHECK(RUN(it, store_rax, data, 3) == 0 && load(it.machine, data) == 3);
  close_world(it);
  puts("a second attachment to the same engine is refused, the first stays");
}

static void check_code(void) {
  static const unsigned char call[] = {0xe8, 0xfb, 0x0f, 0, 0}; /* call code + 0x1000 */
  unsigned char function[] = {0xb8, 1, 0, 0, 0, 0xc3};          /* mov eax, 1; ret */
  world it = open_world(0);
  CHECK(pm_uc_write_code(it.uc, code + 0x1000, function, sizeof function) == 0);
  CHECK(RUN(it, call, 0, 0) == 0 && get(it.engine, UC_X86_REG_RAX) == 1);
  CHECK(pm_store(it.machine, code + 0x1001, 1, 2) == 0);
  CHECK(pm_uc_code_changed(it.uc, code + 0x1001, 1) == 0);
  CHECK(RUN(it, call, 0, 0) == 0 && get(it.engine, UC_X86_REG_RAX) == 2);
  CHECK(pm_store(it.machine, code + 0x1001, 1, 3) == 0); /* A new attachment keeps no old code. */
  CHECK(pm_uc_detach(it.uc) == 0 && pm_uc_attach(it.machine, it.engine, 0, &it.uc) == 0);
  CHECK(RUN(it, call, 0, 0) == 0 && get(it.engine, UC_X86_REG_RAX) == 3);
  close_world(it);
  puts("code: a byte that the host changes is seen after pm_uc_code_changed, and after a new attachment");
}

typedef struct {
  uint64_t base, calls, last;
  int answer;
} device;

static int device_read(void *opaque, uint64_t offset, uint32_t width, uint64_t *value) {
  device *it = (device *)opaque;
  it->calls++, it->last = offset;
  *value = it->base + width;
  return it->answer;
}

static int device_write(void *opaque, uint64_t offset, uint32_t width, uint64_t value) {
  device *it = (device *)opaque;
  it->calls++, it->last = offset;
  return (void)width, (void)value, it->answer;
}

static void check_devices(void) {
  world it = open_world(PM_UC_TRACK_DIRTY);
  device a = {0x100, 0, 0, 0}, b = {0x200, 0, 0, 0};
  pm_mmio_ops ops = {sizeof ops, 0, device_read, device_write, NULL};
  CHECK(pm_dirty_enable(it.machine) == 0);
  CHECK(pm_mmio_add(it.machine, first, 16, &ops, &a) == 0);
  CHECK(pm_mmio_add(it.machine, first + 0x800, 0x1000, &ops, &b) == 0); /* Shares a page with the first. */
  CHECK(pm_uc_detach(it.uc) == 0 && pm_uc_attach(it.machine, it.engine, PM_UC_TRACK_DIRTY, &it.uc) == 0);
  CHECK(RUN(it, load_al_then_inc, first + 3, 0) == 0 && (get(it.engine, UC_X86_REG_RAX) & 0xff) == 0x01);
  CHECK(a.calls == 1 && a.last == 3 && get(it.engine, UC_X86_REG_RBX) == 1);
  CHECK(RUN(it, store_rax, first + 0x1000, 5) == 0 && b.calls == 2 && b.last == 0x804);
  CHECK(RUN(it, load_al_then_inc, first + 0x100, 0) == -EFAULT && RUN(it, store_rax, first + 0x100, 0) == -EFAULT);
  a.answer = -ENXIO;
  CHECK(RUN(it, store_al_then_inc, first + 8, 0) == -ENXIO && get(it.engine, UC_X86_REG_RBX) == 0);
  CHECK(get(it.engine, UC_X86_REG_RIP) == code);
  CHECK(RUN(it, load_al_then_inc, first + 8, 0) == -ENXIO && get(it.engine, UC_X86_REG_RBX) == 0);
  a.answer = 0;
  CHECK(RUN(it, load_al_then_inc, first + 8, 0) == 0 && get(it.engine, UC_X86_REG_RBX) == 1);
  close_world(it);
  puts("devices: two in one page told apart, 8 bytes as two words, a refusal stops at its instruction");
}

/* The dirty pages from `data` on, as bits, after a run of one instruction there. */
static uint64_t dirty(world it, const unsigned char *bytes, size_t count, uint64_t rdi) {
  pm_harvest *harvest;
  uint64_t gpa = data, len, bits = 0;
  CHECK(pm_dirty_begin(it.machine, &harvest) == 0 && pm_dirty_commit(harvest) == 0);
  set(it.engine, UC_X86_REG_RCX, 5000);
  CHECK(run(it, bytes, count, rdi, 0) == 0);
  CHECK(pm_dirty_begin(it.machine, &harvest) == 0);
  for (; pm_dirty_next(harvest, &gpa, &len) == 1; gpa += len)
    for (uint64_t page = gpa; page < gpa + len; page += 4096) bits |= (uint64_t)1 << (page - data) / 4096;
  CHECK(pm_dirty_commit(harvest) == 0);
  return bits;
}

#define DIRTY(it, rdi, ...) \
  dirty(it, (const unsigned char[]){__VA_ARGS__}, sizeof((const unsigned char[]){__VA_ARGS__}), rdi)

static void check_dirty(void) {
  world it = open_world(PM_UC_TRACK_DIRTY);
  CHECK(pm_dirty_enable(it.machine) == 0);
  CHECK(DIRTY(it, data, 0x48, 0x8b, 0x07) == 0);                          /* mov rax, [rdi] */
  CHECK(DIRTY(it, data, 0x88, 0x07) == 1);                                /* mov [rdi], al */
  CHECK(DIRTY(it, data + 4096 + 4093, 0x48, 0x89, 0x07) == 6);            /* mov [rdi], rax over a border */
  CHECK(DIRTY(it, data, 0xf0, 0x48, 0x0f, 0xc1, 0x07) == 1);              /* lock xadd [rdi], rax */
  CHECK(DIRTY(it, data + 8192, 0xf0, 0x48, 0x0f, 0xc7, 0x0f) == 4);       /* lock cmpxchg16b [rdi] */
  CHECK(DIRTY(it, data + 4096 - 8, 0x0f, 0x11, 0x07) == 3);               /* movups [rdi], xmm0 */
  CHECK(DIRTY(it, data + 4096 - 64, 0x0f, 0xae, 0x07) == 3);              /* fxsave [rdi] */
  CHECK(DIRTY(it, data + 3 * 4096, 0x48, 0x89, 0xfc, 0x50) == 4);         /* mov rsp, rdi; push rax */
  close_world(it);
  puts("dirty pages: plain, wide, atomic and string stores, and those over a border of pages");
}

static void check_sharing(void) {
  world a = open_world(0);
  world b = {a.machine, NULL, NULL};
  CHECK(uc_open(UC_ARCH_X86, UC_MODE_64, &b.engine) == UC_ERR_OK);
  CHECK(pm_uc_attach(b.machine, b.engine, 0, &b.uc) == 0);
  CHECK(RUN(a, store_rax, data, 0xabcdef) == 0 && RUN(b, load_rax, data, 0) == 0);
  CHECK(get(b.engine, UC_X86_REG_RAX) == 0xabcdef);
  CHECK(pm_uc_detach(b.uc) == 0 && uc_close(b.engine) == UC_ERR_OK);
  close_world(a);
  puts("two engines see each other's stores");
}

static void measure(uint32_t flags) {
  /* next: mov [rdi], rax; dec rcx; jnz next */
  static const unsigned char loop[] = {0x48, 0x89, 0x07, 0x48, 0xff, 0xc9, 0x75, 0xf8};
  enum { rounds = 200000 };
  world it = open_world(flags);
  struct timespec begin, end;
  CHECK(pm_dirty_enable(it.machine) == 0 && pm_uc_write_code(it.uc, code, loop, sizeof loop) == 0);
  set(it.engine, UC_X86_REG_RDI, data);
  set(it.engine, UC_X86_REG_RCX, rounds);
  clock_gettime(CLOCK_MONOTONIC, &begin);
  CHECK(pm_uc_run(it.uc, code, code + sizeof loop, 0, 0) == 0 && get(it.engine, UC_X86_REG_RCX) == 0);
  clock_gettime(CLOCK_MONOTONIC, &end);
  double seconds = (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
  printf("a loop with a store, %s: %.1f ns a round\n", flags ? "pages marked" : "no marks", 1e9 * seconds / rounds);
  close_world(it);
}

int main(void) {
  check_regions();
  check_overlap();
  check_code();
  check_devices();
  check_dirty();
  check_sharing();
  measure(0);
  measure(PM_UC_TRACK_DIRTY);
}
