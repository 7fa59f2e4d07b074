// The cold side of pm_readers.h: ports come and go with their threads.
#include "pm_readers.h"

#include <pthread.h>

static uint64_t pm_readers_requests = 1;
// What the port of a thread that has not read yet compares with: never what it has seen.
static const uint64_t pm_readers_unlinked = 1;

_Thread_local pm_gate_port pm_readers_port = {.requests = &pm_readers_unlinked};

// Covers the list of linked ports. Held while a request waits, so that no port it waits for can go.
static pthread_mutex_t pm_readers_lock = PTHREAD_MUTEX_INITIALIZER;
static pm_gate_port *pm_readers_head;
static pthread_once_t pm_readers_once = PTHREAD_ONCE_INIT;
static pthread_key_t pm_readers_key;

// Runs at the end of a thread, which is inside of no access then.
static void pm_readers_unlink(void *argument) {
  pm_gate_port *port = argument;
  pthread_mutex_lock(&pm_readers_lock);
  for (pm_gate_port **link = &pm_readers_head; *link != NULL; link = &(*link)->next) {
    if (*link != port) continue;
    *link = port->next;
    break;
  }
  pthread_mutex_unlock(&pm_readers_lock);
  // Another destructor of this thread may still read: that links it again.
  port->requests = &pm_readers_unlinked;
  port->seen = 0;
  port->owner = 0;
}

static void pm_readers_before_fork(void) { pthread_mutex_lock(&pm_readers_lock); }
static void pm_readers_in_parent(void) { pthread_mutex_unlock(&pm_readers_lock); }

// The child has one thread; the ports of the others would be waited for until the end of time.
static void pm_readers_in_child(void) {
  pm_gate_port *own = &pm_readers_port;
  pm_readers_head = own->owner != 0 ? own : NULL;
  own->next = NULL;
  pthread_mutex_unlock(&pm_readers_lock);
}

static void pm_readers_begin(void) {
  if (pthread_key_create(&pm_readers_key, pm_readers_unlink) != 0) __builtin_trap();
  if (pthread_atfork(pm_readers_before_fork, pm_readers_in_parent, pm_readers_in_child) != 0)
    __builtin_trap();
}

static void pm_readers_link(pm_gate_port *port) {
  pthread_once(&pm_readers_once, pm_readers_begin);
  pthread_mutex_lock(&pm_readers_lock);
  port->requests = &pm_readers_requests;
  port->fenced = pm_gate_has_membarrier() ? 0 : 1;
  port->owner = pm_thread_token();
  port->next = pm_readers_head;
  // The port is inside of an access already; whoever requests from here on waits for it.
  pm_readers_head = port;
  pthread_mutex_unlock(&pm_readers_lock);
  // Without memory for this the thread could not be unlinked at its end.
  if (pthread_setspecific(pm_readers_key, port) != 0) __builtin_trap();
}

void pm_readers_refresh(pm_gate_port *port) {
  if (port->owner == 0) pm_readers_link(port);
  pm_gate_seen_store_release(port, pm_gate_requests_load_acquire(port->requests));
}

void pm_readers_wait(void) {
  pthread_mutex_lock(&pm_readers_lock);
  pm_gate_request(&pm_readers_head, &pm_readers_requests, !pm_gate_has_membarrier());
  pthread_mutex_unlock(&pm_readers_lock);
}

uint64_t pm_readers_count(void) {
  pthread_mutex_lock(&pm_readers_lock);
  uint64_t count = 0;
  for (pm_gate_port *port = pm_readers_head; port != NULL; port = port->next) count++;
  pthread_mutex_unlock(&pm_readers_lock);
  return count;
}
