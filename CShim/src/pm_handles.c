// The cold side of pm_handles.h: names come and go.
#include "pm_handles.h"

#include <pthread.h>
#include <string.h>

pm_handle_slot pm_handle_slots[PM_HANDLE_COUNT];

// Covers what follows, and the writing of slots.
static pthread_mutex_t pm_handles_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t pm_handles_once = PTHREAD_ONCE_INIT;
// The serial of the next name; 44 bits last for half a million years of a name per second.
static uint64_t pm_handles_serial = 1;
// Names with a lower one are the parent's.
static uint64_t pm_handles_first_serial = 1;
// Slots from here on were never used.
static uint32_t pm_handles_untouched;
// Free slots below that: one more than the first's place, or 0. The next follows in the slot's object.
static uintptr_t pm_handles_free;

static void pm_handles_before_fork(void) { pthread_mutex_lock(&pm_handles_lock); }
static void pm_handles_in_parent(void) { pthread_mutex_unlock(&pm_handles_lock); }

// The objects stay where they are: threads that the child does not have may be in the midst of them.
static void pm_handles_in_child(void) {
  for (uint32_t place = 0; place < pm_handles_untouched; place++) {
    __atomic_store_n(&pm_handle_slots[place].name, 0, __ATOMIC_RELAXED);
  }
  // The slots are not used again: some of them may be ended by a thread that is not here.
  pm_handles_free = 0;
  pm_handles_first_serial = pm_handles_serial;
  pthread_mutex_unlock(&pm_handles_lock);
}

static void pm_handles_begin(void) {
  if (pthread_atfork(pm_handles_before_fork, pm_handles_in_parent, pm_handles_in_child) != 0)
    __builtin_trap();
}

bool pm_handle_make(pm_handle_kind kind, void *object, uint64_t *name) {
  pthread_once(&pm_handles_once, pm_handles_begin);
  pthread_mutex_lock(&pm_handles_lock);
  uint32_t place;
  if (pm_handles_free != 0) {
    place = (uint32_t)pm_handles_free - 1;
    pm_handles_free = (uintptr_t)pm_handle_slots[place].object;
  } else if (pm_handles_untouched < PM_HANDLE_COUNT) {
    place = pm_handles_untouched++;
  } else {
    pthread_mutex_unlock(&pm_handles_lock);
    return false;
  }
  uint64_t made = pm_handles_serial++ << 20 | (uint64_t)place << 4 | kind << 1 | 1;
  __atomic_store_n(&pm_handle_slots[place].object, object, __ATOMIC_RELAXED);
  __atomic_store_n(&pm_handle_slots[place].name, made, __ATOMIC_RELEASE);
  pthread_mutex_unlock(&pm_handles_lock);
  *name = made;
  return true;
}

void *pm_handle_end(pm_handle_kind kind, uint64_t name) {
  if ((name & 15) != (kind << 1 | 1)) return NULL;
  uint32_t place = name >> 4 & (PM_HANDLE_COUNT - 1);
  pm_handle_slot *slot = &pm_handle_slots[place];
  pthread_mutex_lock(&pm_handles_lock);
  if (__atomic_load_n(&slot->name, __ATOMIC_RELAXED) != name) {
    pthread_mutex_unlock(&pm_handles_lock);
    return NULL;
  }
  __atomic_store_n(&slot->name, 0, __ATOMIC_SEQ_CST);
  pthread_mutex_unlock(&pm_handles_lock);
  // Outside of the lock: a reader at its first entry takes locks too. Nobody else has the slot meanwhile.
  pm_readers_wait();
  void *object = __atomic_load_n(&slot->object, __ATOMIC_RELAXED);
  pthread_mutex_lock(&pm_handles_lock);
  __atomic_store_n(&slot->object, (void *)pm_handles_free, __ATOMIC_RELAXED);
  pm_handles_free = (uintptr_t)place + 1;
  pthread_mutex_unlock(&pm_handles_lock);
  return object;
}

bool pm_handle_is_from_parent(uint64_t name) {
  pthread_mutex_lock(&pm_handles_lock);
  bool is = (name & 1) != 0 && name >> 20 != 0 && name >> 20 < pm_handles_first_serial;
  pthread_mutex_unlock(&pm_handles_lock);
  return is;
}

static _Thread_local char pm_error_line[512];

void pm_error_keep(const char *text, size_t length) {
  size_t count = length < sizeof pm_error_line ? length : sizeof pm_error_line - 1;
  // The text may be the one that is kept.
  memmove(pm_error_line, text, count);
  pm_error_line[count] = 0;
}

const char *pm_error_text(void) { return pm_error_line; }
