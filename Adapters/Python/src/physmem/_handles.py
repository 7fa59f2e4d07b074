"""What a machine gives out for a time: a CPU that allocates, and a harvest of dirty pages."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from ctypes import byref, c_uint64, c_void_p
from types import TracebackType
from typing import Iterator

from ._abi import in_range, library
from ._constants import GFP
from ._memory import MachineMemory


class CPU:
    """A CPU of the machine, for one thread at a time: pages are allocated and freed by it.

    A context manager that releases it.
    """

    def __init__(self, memory: MachineMemory, index: int) -> None:
        handle = c_void_p()
        library.pm_cpu_claim(memory.handle, index, byref(handle))
        self._handle = handle.value

    def alloc_pages(self, order: int = 0, gfp: int = GFP.KERNEL, node: int = -1) -> int:
        """The first pfn of 2**order frames. ENOMEM where there are none."""
        pfn = c_uint64()
        library.pm_alloc_pages(self._handle, order, gfp, node, byref(pfn))
        return pfn.value

    def free_pages(self, pfn: int, order: int = 0) -> None:
        """__free_pages: gives up one reference to the block."""
        library.pm_free_pages(self._handle, pfn, order)

    def put_page(self, pfn: int) -> None:
        """put_page: gives up one reference; the last one frees."""
        library.pm_put_page(self._handle, pfn)

    def report_free_pages(self, min_order: int = 9, max_bytes: int = (1 << 64) - 1) -> int:
        """Gives pages of free blocks of at least 2**min_order frames back to the host; returns bytes."""
        reported = c_uint64()
        library.pm_report_free_pages(self._handle, min_order, max_bytes, byref(reported))
        return reported.value

    def release(self) -> None:
        """Lets others claim the CPU. A second call does nothing."""
        if self._handle is not None:
            library.pm_cpu_release(self._handle)  # raises where another thread is inside: still claimed then
            self._handle = None

    def __del__(self) -> None:
        with suppress(Exception):
            self.release()

    def __enter__(self) -> CPU:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Harvest:
    """Dirty pages that were taken out of the record: runs of (gpa, length).

    A context manager that commits, or, when an exception leaves it, aborts: all are dirty again then.
    """

    def __init__(self, memory: MachineMemory) -> None:
        handle = c_void_p()
        library.pm_dirty_begin(memory.handle, byref(handle))
        self._handle = handle.value

    @property
    def page_count(self) -> int:
        """How many pages of 4096 bytes it holds."""
        pages = c_uint64()
        library.pm_dirty_count(self._handle, byref(pages))
        return pages.value

    def __iter__(self) -> Iterator[tuple[int, int]]:
        gpa, length = c_uint64(), c_uint64()
        while library.pm_dirty_next(self._handle, byref(gpa), byref(length)) == 1:
            yield gpa.value, length.value
            gpa.value += length.value

    def commit(self) -> None:
        """The copies are safe: forgets the pages."""
        library.pm_dirty_commit(self._handle)  # raises where another thread is inside: open still
        self._handle = None

    def abort(self) -> None:
        """Puts the pages back among those that were written meanwhile."""
        library.pm_dirty_abort(self._handle)
        self._handle = None

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            with suppress(Exception):
                self.abort()

    def __enter__(self) -> Harvest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is None:
            return
        if kind is None:
            self.commit()
        else:
            self.abort()


def pointer(data: bytes | bytearray | memoryview) -> tuple[object, int]:
    """What ctypes passes as the address of the bytes of `data`, and how many they are."""
    if isinstance(data, bytes):
        return data, len(data)
    view = memoryview(data).cast("B")
    if view.readonly:
        return bytes(view), len(view)
    return (ctypes.c_char * len(view)).from_buffer(view), len(view)


_make_bytes = ctypes.PYFUNCTYPE(ctypes.py_object, c_void_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi)
)


def new_bytes(length: int) -> bytes:
    """Bytes that are yet to be filled, which nobody else has: the way of CPython to make them without a copy."""
    data: bytes = _make_bytes(None, in_range(length, 1 << 62))
    return data
