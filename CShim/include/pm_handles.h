// Handles of the C interface: names of objects that are looked up, never addresses; and the sentence to a
// thread's last error.
//
// A name has a serial number that is never given out twice, so that a handle that was closed stays refused
// also where its slot has another object. Looking one up takes no lock: it is a reader of pm_readers.h, and a
// slot gets another object only after every reader that may have seen the old one has left.
//
// In the child of a fork all names of before are gone; the child can make handles of its own.
//
// In C because slots are atomic words of a static table, the sentence is thread-local, and pthread_atfork
// takes functions of C.
#ifndef PM_HANDLES_H
#define PM_HANDLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pm_readers.h"

#pragma GCC visibility push(hidden)

/// What a handle names: 1 to 7.
typedef enum __attribute__((enum_extensibility(closed))) pm_handle_kind : uint32_t {
  PM_HANDLE_MACHINE = 1,
  PM_HANDLE_CPU = 2,
  PM_HANDLE_HARVEST = 3,
} pm_handle_kind;

/// How many handles there can be at once.
#define PM_HANDLE_COUNT 65536

/// A place in the table.
typedef struct pm_handle_slot {
  /// serial << 20 | place << 4 | kind << 1 | 1, or 0 while the slot has no object.
  uint64_t name;
  void *_Nullable object;
} pm_handle_slot;

extern pm_handle_slot pm_handle_slots[PM_HANDLE_COUNT];

/// Names an object; the name is live when this returns. False: there are as many as can be.
bool pm_handle_make(
    pm_handle_kind kind, void *_Nonnull object, uint64_t *_Nonnull name);

/// Ends a name: whoever looks it up from here on does not find it. Returns its object when every reader that may
/// have found it before has left, or NULL if the name was none of this kind, or is ended by somebody else.
/// pre: the calling thread is inside of no access.
void *_Nullable pm_handle_end(pm_handle_kind kind, uint64_t name);

/// Whether a name was given out before this process was forked off.
bool pm_handle_is_from_parent(uint64_t name);

/// Keeps the sentence to an error of the calling thread, cut to 511 bytes.
void pm_error_keep(const char *_Nonnull text, size_t length);

/// The sentence kept last by the calling thread, or "".
const char *_Nonnull pm_error_text(void);

#pragma GCC visibility pop

/// The object that a name of this kind stands for, or NULL. Acquire.
/// pre: between pm_readers_enter and pm_readers_leave, and the object is not used after.
static inline __attribute__((always_inline)) void *_Nullable pm_handle_find_acquire(
    pm_handle_kind kind, uint64_t name) {
  pm_handle_slot *slot = &pm_handle_slots[name >> 4 & (PM_HANDLE_COUNT - 1)];
  if (__builtin_expect((name & 15) != (kind << 1 | 1), 0)) return NULL;
  if (__builtin_expect(__atomic_load_n(&slot->name, __ATOMIC_ACQUIRE) != name, 0)) return NULL;
  return __atomic_load_n(&slot->object, __ATOMIC_RELAXED);
}

#endif
