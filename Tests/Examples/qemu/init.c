// The first and only process of the guest: puts the word that it is given into a page of RAM, tells the page's
// physical address on the console, and puts the complement there when it is told to go on.
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <unistd.h>

static void stop(const char *why) {
  printf("GUEST failed: %s\n", why);
  fflush(stdout);
  reboot(RB_POWER_OFF);
}

int main(int count, char **arguments) {
  char line[64];
  if (count < 2) stop("no word");
  uint64_t word = strtoull(arguments[1], NULL, 16);
  mkdir("/proc", 0555);
  if (mount("proc", "/proc", "proc", 0, NULL) != 0) stop("no /proc");
  volatile uint64_t *page = mmap(
      NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED | MAP_POPULATE, -1, 0);
  if (page == MAP_FAILED) stop("no page");
  page[3] = word;
  uint64_t entry = 0;
  int pagemap = open("/proc/self/pagemap", O_RDONLY);
  if (pread(pagemap, &entry, sizeof entry, (uintptr_t)page / 4096 * 8) != sizeof entry) stop("no pagemap");
  if ((entry >> 63) == 0) stop("the page is not present");
  uint64_t frame = entry & ((UINT64_C(1) << 55) - 1);
  printf("GUEST wrote at 0x%llx\n", (unsigned long long)(frame * 4096 + 3 * sizeof word));
  fflush(stdout);
  if (fgets(line, sizeof line, stdin) == NULL) stop("no line");
  page[3] = ~word;
  printf("GUEST wrote again\n");
  fflush(stdout);
  if (fgets(line, sizeof line, stdin) == NULL) stop("no line");
  reboot(RB_POWER_OFF);
}
