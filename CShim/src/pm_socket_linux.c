// Unix sockets and event descriptors on Linux. See pm_socket.h for contracts.
#include "pm_socket.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "pm_seam.h"

// ---- Time ---------------------------------------------------------------------------------------

static int64_t pm_now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

// The time at which to give up; -1: never.
static int64_t pm_deadline(int timeout) { return timeout < 0 ? -1 : pm_now_ms() + timeout; }

static int pm_left(int64_t deadline) {
  if (deadline < 0) return -1;
  int64_t left = deadline - pm_now_ms();
  return left < 0 ? 0 : left > INT_MAX ? INT_MAX : (int)left;
}

// Waits for `events`; a hang-up or an error counts as one, which the next call then tells.
static int pm_wait(int fd, short events, int64_t deadline) {
  struct pollfd entry = {.fd = fd, .events = events};
  int result = (int)PM_SYSTEM_CALL(PM_HOST_CALL_POLL, poll(&entry, 1, pm_left(deadline)));
  if (result < 0) return result;
  return result == 0 ? -ETIMEDOUT : 0;
}

// ---- Sockets ------------------------------------------------------------------------------------

static int pm_address(const char *path, struct sockaddr_un *address) {
  size_t length = strlen(path);
  if (length == 0) return -ENOENT;
  if (length >= sizeof address->sun_path) return -ENAMETOOLONG;
  memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  memcpy(address->sun_path, path, length);
  return 0;
}

static int pm_socket_make(int *fd) {
  intptr_t result =
      PM_SYSTEM_CALL(PM_HOST_CALL_SOCKET, socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (result < 0) return (int)result;
  pm_count_fds(1);
  *fd = (int)result;
  return 0;
}

// Closes what an error leaves behind, and keeps the error.
static int pm_close_after(int fd, int error) {
  int ignored = pm_host_close(fd);
  (void)ignored;
  return error;
}

int pm_socket_listen(const char *path, int *fd) {
  struct sockaddr_un address;
  int result = pm_address(path, &address);
  if (result < 0) return result;
  int made = -1;
  result = pm_socket_make(&made);
  if (result < 0) return result;
  // The name gets the socket's mode at once, so that at no time anybody else may connect.
  result = (int)PM_SYSTEM_CALL(PM_HOST_CALL_BIND, fchmod(made, S_IRUSR | S_IWUSR));
  if (result == 0) {
    result = (int)PM_SYSTEM_CALL(
        PM_HOST_CALL_BIND, bind(made, (struct sockaddr *)&address, sizeof address));
  }
  if (result < 0) return pm_close_after(made, result);
  result = (int)PM_SYSTEM_CALL(PM_HOST_CALL_BIND, listen(made, 16));
  if (result < 0) {
    unlink(path);
    return pm_close_after(made, result);
  }
  *fd = made;
  return 0;
}

int pm_socket_accept(int listener, int timeout, int *fd) {
  int result = pm_wait(listener, POLLIN, pm_deadline(timeout));
  if (result < 0) return result;
  result = (int)PM_SYSTEM_CALL(
      PM_HOST_CALL_SOCKET, accept4(listener, NULL, NULL, SOCK_CLOEXEC));
  if (result < 0) return result;
  pm_count_fds(1);
  *fd = result;
  return 0;
}

int pm_socket_connect(const char *path, int *fd) {
  struct sockaddr_un address;
  int result = pm_address(path, &address);
  if (result < 0) return result;
  int made = -1;
  result = pm_socket_make(&made);
  if (result < 0) return result;
  result = (int)PM_SYSTEM_CALL(
      PM_HOST_CALL_CONNECT, connect(made, (struct sockaddr *)&address, sizeof address));
  if (result < 0) return pm_close_after(made, result);
  *fd = made;
  return 0;
}

int pm_socket_pair(int *first, int *second) {
  int pair[2];
  intptr_t result =
      PM_SYSTEM_CALL(PM_HOST_CALL_SOCKET, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
  if (result < 0) return (int)result;
  pm_count_fds(2);
  *first = pair[0];
  *second = pair[1];
  return 0;
}

int pm_socket_unlink(const char *path) {
  return (int)PM_SYSTEM_CALL(PM_HOST_CALL_UNLINK, unlink(path));
}

int pm_socket_remove_abandoned(const char *path) {
  struct stat status;
  int result = (int)PM_SYSTEM_CALL(PM_HOST_CALL_FSTAT, lstat(path, &status));
  if (result < 0) return result;
  // A connection to a file that is no socket is refused as well.
  if (!S_ISSOCK(status.st_mode)) return -EADDRINUSE;
  int fd = -1;
  result = pm_socket_connect(path, &fd);
  if (result == 0) return pm_close_after(fd, -EADDRINUSE);
  return result == -ECONNREFUSED ? pm_socket_unlink(path) : result;
}

// ---- Messages -----------------------------------------------------------------------------------

typedef union {
  char bytes[CMSG_SPACE(PM_SOCKET_FDS_MAX * sizeof(int))];
  struct cmsghdr alignment;
} pm_control;

int pm_socket_send(
    int fd, const void *bytes, size_t length, const int *fds, size_t count, int timeout) {
  if (count > PM_SOCKET_FDS_MAX) return -EINVAL;
  int64_t deadline = pm_deadline(timeout);
  pm_control control;
  size_t sent = 0;
  while (sent < length) {
    struct iovec part = {.iov_base = (char *)(uintptr_t)bytes + sent, .iov_len = length - sent};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (sent == 0 && count > 0) {
      memset(&control, 0, sizeof control);
      message.msg_control = control.bytes;
      message.msg_controllen = CMSG_SPACE(count * sizeof(int));
      struct cmsghdr *header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(count * sizeof(int));
      memcpy(CMSG_DATA(header), fds, count * sizeof(int));
    }
    intptr_t result =
        PM_SYSTEM_CALL(PM_HOST_CALL_SEND, sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT));
    if (result == -EAGAIN || result == -EWOULDBLOCK) {
      result = pm_wait(fd, POLLOUT, deadline);
      if (result < 0) return (int)result;
      continue;
    }
    if (result < 0) return (int)result;
    sent += (size_t)result;
  }
  return 0;
}

// Keeps the descriptors of a message as far as there is room, and closes the rest.
static void pm_take_fds(struct msghdr *message, int *fds, size_t capacity, size_t *count) {
  for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header != NULL;
       header = CMSG_NXTHDR(message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    size_t found = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t index = 0; index < found; index++) {
      int fd;
      memcpy(&fd, CMSG_DATA(header) + index * sizeof(int), sizeof fd);
      if (fds != NULL && *count < capacity) {
        fds[(*count)++] = fd;
        pm_count_fds(1);
      } else {
        close(fd);
      }
    }
  }
}

int pm_socket_receive(
    int fd, void *bytes, size_t length, size_t *received, int *fds, size_t capacity, size_t *count,
    int timeout) {
  int64_t deadline = pm_deadline(timeout);
  pm_control control;
  size_t done = 0;
  size_t kept = 0;
  int error = 0;
  while (done < length) {
    struct iovec part = {.iov_base = (char *)bytes + done, .iov_len = length - done};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes,
        .msg_controllen = sizeof control};
    intptr_t result = PM_SYSTEM_CALL(
        PM_HOST_CALL_RECEIVE, recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC));
    if (result == -EAGAIN || result == -EWOULDBLOCK) {
      error = pm_wait(fd, POLLIN, deadline);
      if (error < 0) break;
      continue;
    }
    if (result < 0) {
      error = (int)result;
      break;
    }
    pm_take_fds(&message, fds, capacity, &kept);
    if (result == 0) break;
    done += (size_t)result;
  }
  if (error < 0) {
    while (kept > 0) error = pm_close_after(fds[--kept], error);
    return error;
  }
  *received = done;
  *count = kept;
  return 0;
}

// ---- Events -------------------------------------------------------------------------------------

int pm_event_make(int *fd) {
  intptr_t result =
      PM_SYSTEM_CALL(PM_HOST_CALL_EVENT, eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (result < 0) return (int)result;
  pm_count_fds(1);
  *fd = (int)result;
  return 0;
}

int pm_event_signal(int fd) {
  uint64_t one = 1;
  intptr_t result = PM_SYSTEM_CALL(PM_HOST_CALL_EVENT, write(fd, &one, sizeof one));
  // A counter that is full is not 0 either.
  return result < 0 && result != -EAGAIN ? (int)result : 0;
}

int pm_event_wait(int fd, int peer, int timeout) {
  int64_t deadline = pm_deadline(timeout);
  for (;;) {
    uint64_t value;
    intptr_t result = PM_SYSTEM_CALL(PM_HOST_CALL_EVENT, read(fd, &value, sizeof value));
    if (result != -EAGAIN) return result < 0 ? (int)result : 0;
    struct pollfd entries[2] = {{.fd = fd, .events = POLLIN}, {.fd = peer, .events = POLLRDHUP}};
    result = PM_SYSTEM_CALL(PM_HOST_CALL_POLL, poll(entries, 2, pm_left(deadline)));
    if (result < 0) return (int)result;
    if (result == 0) return -ETIMEDOUT;
    // What the peer signalled before it went counts.
    if (entries[0].revents == 0 && entries[1].revents != 0) return -EPIPE;
  }
}
