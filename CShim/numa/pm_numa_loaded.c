// libnuma as the self-contained libphysmem has it: loaded where the host has one, when the first question comes.
//
// Stands in for -lnuma in that library only (.install/library). Without libnuma.so.1 numa_available says so, and
// the questions of pm_host.h answer -ENOSYS; mbind and move_pages are system calls anyway.
#include <dlfcn.h>
#include <errno.h>
#include <numa.h>
#include <numaif.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

struct bitmask *numa_nodes_ptr;
struct bitmask *numa_all_nodes_ptr;

static pthread_once_t pm_numa_once = PTHREAD_ONCE_INIT;
static int (*pm_numa_available)(void);
static int (*pm_numa_max_node)(void);
static int (*pm_numa_is_set)(const struct bitmask *, unsigned int);
static long long (*pm_numa_node_size)(int, long long *);
static int (*pm_numa_distance)(int, int);
static int (*pm_numa_possible_cpus)(void);
static int (*pm_numa_node_of_cpu)(int);

// A function of libnuma. What dlsym yields becomes a function pointer by a union, as POSIX means it.
#define PM_NUMA_FIND(pointer, name)          \
  do {                                       \
    union {                                  \
      void *object;                          \
      __typeof__(pointer) function;          \
    } found = {.object = dlsym(library, name)}; \
    if (found.object == NULL) return;        \
    pointer = found.function;                \
  } while (0)

static void pm_numa_load(void) {
  void *library = dlopen("libnuma.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) return;
  struct bitmask **nodes = dlsym(library, "numa_nodes_ptr");
  struct bitmask **all = dlsym(library, "numa_all_nodes_ptr");
  if (nodes == NULL || all == NULL) return;
  PM_NUMA_FIND(pm_numa_max_node, "numa_max_node");
  PM_NUMA_FIND(pm_numa_is_set, "numa_bitmask_isbitset");
  PM_NUMA_FIND(pm_numa_node_size, "numa_node_size64");
  PM_NUMA_FIND(pm_numa_distance, "numa_distance");
  PM_NUMA_FIND(pm_numa_possible_cpus, "numa_num_possible_cpus");
  PM_NUMA_FIND(pm_numa_node_of_cpu, "numa_node_of_cpu");
  numa_nodes_ptr = *nodes;
  numa_all_nodes_ptr = *all;
  // Last: with it the others are there.
  PM_NUMA_FIND(pm_numa_available, "numa_available");
}

// pm_host.h asks this before anything else, and nothing where it is negative.
int numa_available(void) {
  pthread_once(&pm_numa_once, pm_numa_load);
  return pm_numa_available == NULL ? -1 : pm_numa_available();
}

int numa_max_node(void) { return pm_numa_max_node(); }
int numa_bitmask_isbitset(const struct bitmask *mask, unsigned int bit) {
  return pm_numa_is_set(mask, bit);
}
long long numa_node_size64(int node, long long *free) { return pm_numa_node_size(node, free); }
int numa_distance(int from, int to) { return pm_numa_distance(from, to); }
int numa_num_possible_cpus(void) { return pm_numa_possible_cpus(); }
int numa_node_of_cpu(int cpu) { return pm_numa_node_of_cpu(cpu); }

long mbind(
    void *start, unsigned long length, int mode, const unsigned long *nodes,
    unsigned long maximum, unsigned flags) {
  return syscall(SYS_mbind, start, length, mode, nodes, maximum, flags);
}

long move_pages(
    int pid, unsigned long count, void **pages, const int *nodes, int *status, int flags) {
  return syscall(SYS_move_pages, pid, count, pages, nodes, status, flags);
}
