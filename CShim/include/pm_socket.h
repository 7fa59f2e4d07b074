// Unix sockets that carry descriptors, and event descriptors.
//
// As in pm_host.h every function returns 0 or -errno, results come through out-parameters written only on
// success, and every entry into the system passes the seam. Sockets here are streams. Waiting ends at a
// timeout in milliseconds (-1: never) with -ETIMEDOUT, whether or not the descriptor blocks.
#ifndef PM_SOCKET_H
#define PM_SOCKET_H

#include "pm_host.h"

#pragma GCC visibility push(hidden)

/// The most descriptors that one message carries here.
#define PM_SOCKET_FDS_MAX 64

/// Makes a socket at `path`, which only this user may connect to, and listens. -EADDRINUSE if the path exists;
/// -ENAMETOOLONG above 107 bytes. The path stays when the descriptor is closed.
/// In C because sockaddr_un is a union in disguise.
int pm_socket_listen(const char *_Nonnull path, int *_Nonnull fd) PM_HOST_CHECKED;

/// Takes the next connection of a listening socket. In C because it must pass the seam.
int pm_socket_accept(int listener, int timeout, int *_Nonnull fd) PM_HOST_CHECKED;

/// Connects to the socket at `path`. In C for the same reason as pm_socket_listen.
int pm_socket_connect(const char *_Nonnull path, int *_Nonnull fd) PM_HOST_CHECKED;

/// Two sockets connected with each other. In C because it must pass the seam.
int pm_socket_pair(int *_Nonnull first, int *_Nonnull second) PM_HOST_CHECKED;

/// Removes the name of a socket (or of any file). In C because it must pass the seam.
int pm_socket_unlink(const char *_Nonnull path) PM_HOST_CHECKED;

/// Removes the name of a socket that nobody listens at. -EADDRINUSE if somebody does, and for any other file.
/// In C because it must pass the seam.
int pm_socket_remove_abandoned(const char *_Nonnull path) PM_HOST_CHECKED;

/// Sends `length` bytes, the descriptors with the first of them. -EPIPE where nobody listens any more, without
/// a signal. pre: length > 0; count <= PM_SOCKET_FDS_MAX.
/// In C because control messages are macros.
int pm_socket_send(
    int fd, const void *_Nonnull bytes, size_t length, const int *_Nullable fds, size_t count,
    int timeout) PM_HOST_CHECKED;

/// Receives up to `length` bytes, all of them unless the peer closes before (`*received` tells), and up to
/// `capacity` descriptors (`*count` tells; the caller owns them, those beyond are closed). After an error the
/// descriptors received so far are closed. In C for the same reason as pm_socket_send.
int pm_socket_receive(
    int fd, void *_Nonnull bytes, size_t length, size_t *_Nonnull received, int *_Nullable fds,
    size_t capacity, size_t *_Nonnull count, int timeout) PM_HOST_CHECKED;

/// Makes a descriptor with a counter, at 0. In C because eventfd is invisible to Swift.
int pm_event_make(int *_Nonnull fd) PM_HOST_CHECKED;

/// Adds 1 to the counter. In C because it must pass the seam.
int pm_event_signal(int fd) PM_HOST_CHECKED;

/// Waits until the counter is not 0, and sets it to 0; -EPIPE as soon as the socket `peer` (-1: none) has hung
/// up while it is 0. In C because it must pass the seam.
int pm_event_wait(int fd, int peer, int timeout) PM_HOST_CHECKED;

#pragma GCC visibility pop

#endif
