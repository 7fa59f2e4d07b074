"""The handle of a machine, and views of its memory, which outlive it as long as they are used."""

from __future__ import annotations

import ctypes
import errno
import threading
import weakref
from typing import Any

from ._abi import PhysmemError, library

_READ = 1
_WRITE = 2


class MachineMemory:
    """A machine's handle, which is closed when nobody can use its memory any more.

    A view is memory of the library: closing under it would leave it without. So close() ends the handle for
    everybody, and the last view that goes takes the memory with it.
    """

    def __init__(self, handle: int) -> None:
        # Reentrant: a view's end can come in the midst of anything, by the collector.
        self._lock = threading.RLock()
        self._open: int | None = handle
        self._unclosed: int | None = handle
        self._views: dict[int, range] = {}
        self._next_view = 0

    @property
    def handle(self) -> int | None:
        """What functions of the library take; None, which they refuse, once it is closed."""
        return self._open

    def view(self, gpa: int, length: int, writable: bool) -> memoryview:
        """The bytes of a range within one region."""
        address = ctypes.c_void_p()
        with self._lock:  # No region goes between the translation and the view.
            library.pm_translate(
                self._open, gpa, length, _READ | (_WRITE if writable else 0), ctypes.byref(address)
            )
            view = self.view_of_host(address.value or 0, length, range(gpa, gpa + length))
        return view if writable else view.toreadonly()

    def view_of_host(self, address: int, length: int, guest: range = range(0)) -> memoryview:
        """The bytes at an address that the library gave out; `guest`: the guest's addresses that they have."""
        with self._lock:
            array: Any = (ctypes.c_ubyte * length).from_address(address)
            key = self._next_view
            self._next_view += 1
            self._views[key] = guest
            weakref.finalize(array, self._forget, key).atexit = False
        return memoryview(array).cast("B")

    def remove_region(self, gpa: int, length: int) -> None:
        """pm_region_remove, unless a view is in the region: BufferError then."""
        with self._lock:
            for guest in list(self._views.values()):
                if guest and guest.start < gpa + length and gpa < guest.stop:
                    raise BufferError(f"a view shows {guest.start:#x}..<{guest.stop:#x} of the region")
            library.pm_region_remove(self._open, gpa)

    def close(self) -> None:
        """Ends the handle; the memory goes when the last view has gone."""
        with self._lock:
            self._open = None
            self._close_if_unused()

    def _forget(self, key: int) -> None:
        with self._lock:
            del self._views[key]
            if self._open is None:
                self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._views or self._unclosed is None:
            return
        handle, self._unclosed = self._unclosed, None
        try:
            library.pm_close(handle)
        except PhysmemError as error:
            if error.errno != errno.ECHILD:  # In the child of a fork the machine is the parent's.
                raise
