/* What an embedder must not do, and processes that die: errors, never a crash, no lock left held. */
#define _GNU_SOURCE
#include <physmem.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1u << 20)

#define REQUIRE(condition)                                                                      \
  do {                                                                                          \
    if (!(condition)) {                                                                         \
      printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #condition, pm_last_error());               \
      fflush(stdout);                                                                           \
      _exit(1);                                                                                 \
    }                                                                                           \
  } while (0)

/* ---- fork ---------------------------------------------------------------------------------------------- */

static void in_child(pm_machine *machine, pm_cpu *cpu, char *hva) {
  uint64_t value;
  pm_machine *own;
  REQUIRE(pm_load(machine, 0x1000, 8, &value) == -ECHILD);
  REQUIRE(pm_write(machine, 0x1000, "x", 1) == -ECHILD);
  REQUIRE(pm_put_page(cpu, 1) == -ECHILD);
  REQUIRE(pm_close(machine) == -ECHILD);
  strcpy(hva, "from the child");
  REQUIRE(pm_open(16 * MIB, &own) == 0);
  REQUIRE(own != machine);
  REQUIRE(pm_write(own, 0x1000, "own", 4) == 0);
  REQUIRE(pm_close(own) == 0);
  _exit(0);
}

static void forks(void) {
  pm_machine *machine;
  pm_cpu *cpu;
  void *hva;
  char text[32];
  int status;
  REQUIRE(pm_open(16 * MIB, &machine) == 0);
  REQUIRE(pm_cpu_claim(machine, 0, &cpu) == 0);
  REQUIRE(pm_translate(machine, 0x2000, 32, PM_PROT_WRITE, &hva) == 0);
  pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) in_child(machine, cpu, hva);
  REQUIRE(waitpid(child, &status, 0) == child && status == 0);
  REQUIRE(pm_read(machine, 0x2000, text, sizeof text) == 0);
  REQUIRE(strcmp(text, "from the child") == 0);
  REQUIRE(pm_cpu_release(cpu) == 0);
  REQUIRE(pm_close(machine) == 0);
}

/* ---- descriptors ---------------------------------------------------------------------------------------- */

static void no_descriptors(void) {
  struct rlimit before, none;
  pm_machine *machine, *other;
  pm_region region = PM_REGION_INIT;
  char byte;
  REQUIRE(pm_open(16 * MIB, &machine) == 0);
  REQUIRE(getrlimit(RLIMIT_NOFILE, &before) == 0);
  none = before;
  none.rlim_cur = 0;
  REQUIRE(setrlimit(RLIMIT_NOFILE, &none) == 0);
  region.gpa = 1ull << 32;
  region.len = 4096;
  for (int round = 0; round < 100; round++) {
    REQUIRE(pm_open(16 * MIB, &other) == -EMFILE);
    REQUIRE(pm_region_add(machine, &region) == -EMFILE);
    REQUIRE(pm_write(machine, 0x1000, "x", 1) == 0);
  }
  REQUIRE(setrlimit(RLIMIT_NOFILE, &before) == 0);
  REQUIRE(pm_region_add(machine, &region) == 0);
  REQUIRE(pm_read(machine, region.gpa, &byte, 1) == 0 && byte == 0);
  REQUIRE(pm_close(machine) == 0);
}

/* ---- handles -------------------------------------------------------------------------------------------- */

static void stale_handles(void) {
  pm_machine *machine;
  pm_cpu *first, *cpu;
  uint64_t pfn;
  REQUIRE(pm_open(16 * MIB, &machine) == 0);
  REQUIRE(pm_cpu_claim(machine, 0, &first) == 0);
  REQUIRE(pm_cpu_release(first) == 0);
  for (int round = 0; round < 70000; round++) {
    REQUIRE(pm_cpu_claim(machine, 0, &cpu) == 0);
    REQUIRE(cpu != first && pm_alloc_pages(first, 0, 0xcc0, -1, &pfn) == -EBADF);
    REQUIRE(pm_cpu_release(cpu) == 0);
  }
  REQUIRE(pm_close(machine) == 0);
}

/* ---- threads -------------------------------------------------------------------------------------------- */

static pm_machine *_Atomic shared;
static _Atomic int is_over;

static int is_expected(int result) {
  return result >= 0 || result == -EFAULT || result == -EBADF || result == -EBUSY
      || result == -EEXIST || result == -ENOENT || result == -ENODATA || result == -EALREADY;
}

/* A guest that hammers, also where there is nothing, while the machine is closed and made anew. */
static void *hammer(void *argument) {
  uint64_t state = (uintptr_t)argument * 0x9e3779b97f4a7c15u + 1;
  char bytes[256];
  while (!atomic_load(&is_over)) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    pm_machine *machine = atomic_load(&shared);
    uint64_t gpa = (state >> 20) % (20 * MIB), value = state;
    if (state >> 60 == 0) gpa = state;
    pm_cpu *cpu;
    pm_harvest *harvest;
    int result = 0;
    switch (state >> 56 & 7) {
      case 0: result = pm_read(machine, gpa, bytes, state >> 8 & 255); break;
      case 1: result = pm_write(machine, gpa, bytes, state >> 8 & 255); break;
      case 2: result = pm_store(machine, gpa, 8, value); break;
      case 3: result = pm_atomic_cas(machine, gpa & ~7ull, 8, &value, 1); break;
      case 4: {
        pm_region region = PM_REGION_INIT;
        region.gpa = 16 * MIB + (gpa & 0x30000);
        region.len = 0x10000;
        result = pm_region_add(machine, &region);
        break;
      }
      case 5: result = pm_region_remove(machine, 16 * MIB + (gpa & 0x30000)); break;
      case 6:
        result = pm_cpu_claim(machine, 0, &cpu);
        if (result == 0) {
          uint64_t pfn;
          if (pm_alloc_pages(cpu, 0, 0xcc0, -1, &pfn) == 0) (void)pm_put_page(cpu, pfn);
          result = pm_cpu_release(cpu);
        }
        break;
      default:
        (void)pm_dirty_enable(machine);
        result = pm_dirty_begin(machine, &harvest);
        if (result == 0) result = pm_dirty_commit(harvest);
    }
    REQUIRE(is_expected(result));
    if (result < 0) REQUIRE(pm_last_error()[0] != 0);
  }
  return NULL;
}

static void threads(void) {
  pthread_t workers[4];
  pm_machine *machine;
  REQUIRE(pm_open(16 * MIB, &machine) == 0);
  atomic_store(&shared, machine);
  for (uintptr_t index = 0; index < 4; index++) {
    REQUIRE(pthread_create(&workers[index], NULL, hammer, (void *)index) == 0);
  }
  for (int round = 0; round < 500; round++) {
    pm_machine *next;
    REQUIRE(pm_open(16 * MIB, &next) == 0);
    machine = atomic_exchange(&shared, next);
    REQUIRE(pm_close(machine) == 0);
  }
  atomic_store(&is_over, 1);
  for (int index = 0; index < 4; index++) REQUIRE(pthread_join(workers[index], NULL) == 0);
  REQUIRE(pm_close(atomic_load(&shared)) == 0);
}

/* ---- a process that dies ---------------------------------------------------------------------------------- */

/* The other process: maps the memory that it inherited, and works on it until it is killed. */
static int peer(int fd) {
  pm_machine *machine;
  pm_region region = PM_REGION_INIT;
  uint64_t value = 0;
  char bytes[4096];
  memset(bytes, 0x33, sizeof bytes);
  region.gpa = 1ull << 32;
  region.len = 16 * MIB;
  region.fd = fd;
  REQUIRE(pm_open(16 * MIB, &machine) == 0);
  REQUIRE(pm_region_add(machine, &region) == 0);
  REQUIRE(pm_dirty_enable(machine) == 0);
  for (;;) {
    value = 0;
    while (pm_atomic_cas(machine, region.gpa + 0x1000, 8, &value, value + 1) == 0) {
    }
    REQUIRE(pm_write(machine, region.gpa + 0x2000, bytes, sizeof bytes) == 0);
  }
}

static void deaths(const char *program) {
  pm_machine *machine;
  pm_region region;
  uint32_t count = 1;
  uint64_t value, before;
  char fd[16], bytes[4096];
  REQUIRE(pm_open(16 * MIB, &machine) == 0);
  memset(&region, 0, sizeof region);
  region.size = sizeof region;
  REQUIRE(pm_regions(machine, &region, &count) == 0);
  int inherited = dup(region.fd);
  REQUIRE(inherited >= 0);
  snprintf(fd, sizeof fd, "%d", inherited);
  for (int round = 0; round < 20; round++) {
    REQUIRE(pm_atomic_load(machine, 0x1000, 8, &before) == 0);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      execl(program, program, "peer", fd, (char *)NULL);
      _exit(127);
    }
    /* It is at work once its counter moves; ours moves with it. */
    do {
      REQUIRE(waitpid(child, NULL, WNOHANG) == 0);
      REQUIRE(pm_atomic_load(machine, 0x1000, 8, &value) == 0);
    } while (value < before + 50 + (uint64_t)round);
    REQUIRE(kill(child, SIGKILL) == 0);
    /* While it dies and after: nothing waits for it. */
    REQUIRE(pm_write(machine, 0x2000, "alive", 6) == 0);
    REQUIRE(waitpid(child, NULL, 0) == child);
    REQUIRE(pm_write(machine, 0x2000, "alive", 6) == 0);
    REQUIRE(pm_read(machine, 0x2000, bytes, sizeof bytes) == 0 && strcmp(bytes, "alive") == 0);
    REQUIRE(pm_atomic_load(machine, 0x1000, 8, &value) == 0);
    REQUIRE(pm_atomic_cas(machine, 0x1000, 8, &value, value + 1) == 1);
    REQUIRE(pm_dirty_enable(machine) == 0);
    REQUIRE(pm_merge(machine, NULL) == 0);
    REQUIRE(pm_dirty_disable(machine) == 0);
  }
  close(inherited);
  REQUIRE(pm_close(machine) == 0);
}

int main(int count, char **arguments) {
  if (count == 3) return peer(atoi(arguments[2]));
  forks();
  no_descriptors();
  stale_handles();
  threads();
  deaths(arguments[0]);
  puts("abuse: errors, and nothing else");
  return 0;
}
