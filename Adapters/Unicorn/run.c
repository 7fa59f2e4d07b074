/* Runs code from physmem's memory in Unicorn: a function that doubles a number, which the host then changes, and
 * whose caller stores the result and tells it to a device. cc run.c $(pkg-config --cflags --libs physmem unicorn) */
#include <stdio.h>

#include "physmem-unicorn.h"

#define CHECK(condition) \
  ((condition) ? (void)0 : (fprintf(stderr, "line %d: %s: %s\n", __LINE__, #condition, pm_last_error()), exit(1)))

enum { code = 0x1000, function = 0x2000, stack = 0x8000, result = 0x300000, device = 0x70000000 };

static const unsigned char caller[] = {
    0xe8, 0xfb, 0x0f, 0x00, 0x00, /* call function       */
    0x48, 0x89, 0x07,             /* mov [rdi], rax      */
    0x89, 0x03,                   /* mov [rbx], eax      */
    0x8b, 0x4b, 0x04};            /* mov ecx, [rbx + 4]  */
static const unsigned char twice[] = {0x48, 0x8d, 0x04, 0x36, 0xc3}; /* lea rax, [rsi + rsi]; ret */
static const unsigned char half[] = {0x89, 0xf0, 0xd1, 0xe8, 0xc3};  /* mov eax, esi; shr eax, 1; ret */

static int told(void *value_told, uint64_t offset, uint32_t width, uint64_t value) {
  return offset == 0 && width == 4 ? (*(uint64_t *)value_told = value, 0) : -EIO;
}

static int asked(void *value_told, uint64_t offset, uint32_t width, uint64_t *value) {
  return offset == 4 && width == 4 ? (*value = *(uint64_t *)value_told + 1, 0) : -EIO;
}

int main(void) {
  uint64_t value_told = 0, registers[4] = {21, result, device, stack}, rcx, stored, gpa, len, dirty[4], pages;
  const int names[4] = {UC_X86_REG_RSI, UC_X86_REG_RDI, UC_X86_REG_RBX, UC_X86_REG_RSP};
  pm_mmio_ops ops = {sizeof ops, 0, asked, told, NULL};
  pm_machine *machine;
  uc_engine *engine;
  pm_harvest *harvest;
  pm_uc *uc;
  CHECK(pm_open(64 << 20, &machine) == 0 && pm_mmio_add(machine, device, 8, &ops, &value_told) == 0);
  CHECK(uc_open(UC_ARCH_X86, UC_MODE_64, &engine) == UC_ERR_OK);
  CHECK(pm_uc_attach(machine, engine, PM_UC_TRACK_DIRTY, &uc) == 0 && pm_dirty_enable(machine) == 0);
  CHECK(pm_write(machine, code, caller, sizeof caller) == 0);
  for (int change = 0; change < 2; change++) {
    CHECK(pm_uc_write_code(uc, function, change ? half : twice, sizeof twice) == 0);
    CHECK(pm_dirty_begin(machine, &harvest) == 0 && pm_dirty_commit(harvest) == 0); /* what the host wrote */
    for (int i = 0; i < 4; i++) CHECK(uc_reg_write(engine, names[i], &registers[i]) == UC_ERR_OK);
    CHECK(pm_uc_run(uc, code, code + sizeof caller, 0, 0) == 0);
    CHECK(uc_reg_read(engine, UC_X86_REG_RCX, &rcx) == UC_ERR_OK);
    CHECK(pm_load(machine, result, 8, &stored) == 0 && stored == (change ? 10 : 42));
    CHECK(value_told == stored && rcx == stored + 1);
    CHECK(pm_dirty_begin(machine, &harvest) == 0);
    for (gpa = 0, pages = 0; pm_dirty_next(harvest, &gpa, &len) == 1 && pages < 4; gpa += len) dirty[pages++] = gpa;
    CHECK(pages == 2 && dirty[0] == stack - 4096 && dirty[1] == result && pm_dirty_commit(harvest) == 0);
    printf("%s of 21 is %d; dirty: the stack at %#x, the result at %#x\n", change ? "half" : "twice", (int)stored,
           (int)dirty[0], (int)dirty[1]);
  }
  CHECK(pm_uc_detach(uc) == 0 && uc_close(engine) == UC_ERR_OK && pm_close(machine) == 0);
}
