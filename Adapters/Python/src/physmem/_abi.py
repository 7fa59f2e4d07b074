"""libphysmem as ctypes has it: structures, functions, and errors that are raised."""

from __future__ import annotations

import ctypes
import operator
import os
import threading
from ctypes import POINTER, c_int, c_int32, c_uint8, c_uint32, c_uint64, c_void_p
from typing import Any

ABI_VERSION = 1


class PhysmemError(OSError):
    """A call that the library refused: `errno`, and in `strerror` the library's sentence."""


class U8(c_uint8):
    """An argument of 8 bits; ctypes' own cuts what is larger."""

    @classmethod
    def from_param(cls, value: Any) -> Any:
        return c_uint8(in_range(value, 1 << 8))


class U32(c_uint32):
    """An argument of 32 bits; ctypes' own cuts what is larger."""

    @classmethod
    def from_param(cls, value: Any) -> Any:
        return c_uint32(in_range(value, 1 << 32))


class U64(c_uint64):
    """An argument of 64 bits; ctypes' own cuts what is larger."""

    @classmethod
    def from_param(cls, value: Any) -> Any:
        return c_uint64(in_range(value, 1 << 64))


def in_range(value: Any, end: int) -> int:
    """`value` as an int, if it is one from 0 to below `end`; else raises ctypes.ArgumentError or TypeError."""
    number = operator.index(value)
    if not 0 <= number < end:
        raise ctypes.ArgumentError(f"{number:#x} is not in 0..<{end:#x}")
    return number


class Sized(ctypes.Structure):
    """A structure whose first field is its size."""

    size: int

    def __init__(self, **fields: Any) -> None:
        super().__init__(size=ctypes.sizeof(self), **fields)


class Options(Sized):
    """pm_options"""

    _fields_ = [
        ("size", c_uint32),
        ("backing", c_uint32),
        ("memory", c_uint64),
        ("huge_page_size", c_uint64),
        ("numa_node", c_int32),
        ("cpus", c_uint32),
        ("flags", c_uint32),
        ("kvm_model", c_uint32),
        ("free_pages_model", c_uint32),
        ("refcount_layout", c_uint32),
    ]


class MachineInfo(Sized):
    """pm_machine_info: what a machine has.

    `memory`, `ballooned` and `resident` are bytes; pfns are below `frame_count`; `finding_count` is how many
    lines Machine.findings() has.
    """

    cpus: int
    nodes: int
    regions: int
    memory: int
    frame_count: int
    ballooned: int
    resident: int
    finding_count: int
    _fields_ = [
        ("size", c_uint32),
        ("cpus", c_uint32),
        ("nodes", c_uint32),
        ("regions", c_uint32),
        ("memory", c_uint64),
        ("frame_count", c_uint64),
        ("ballooned", c_uint64),
        ("resident", c_uint64),
        ("finding_count", c_uint64),
    ]


class RegionRecord(Sized):
    """pm_region"""

    kind: int
    gpa: int
    len: int
    fd: int
    numa_node: int
    fd_offset: int
    page_size: int
    prot: int
    backing: int
    hva: int | None
    _fields_ = [
        ("size", c_uint32),
        ("kind", c_uint32),
        ("gpa", c_uint64),
        ("len", c_uint64),
        ("fd", c_int32),
        ("numa_node", c_int32),
        ("fd_offset", c_uint64),
        ("page_size", c_uint64),
        ("prot", c_uint32),
        ("backing", c_uint32),
        ("hva", c_void_p),
    ]


class MergeResult(Sized):
    """pm_merge_result: pages `scanned`, of `zero`es given back, `merged`; bytes `freed`."""

    scanned: int
    zero: int
    merged: int
    freed: int
    _fields_ = [
        ("size", c_uint32),
        ("reserved", c_uint32),
        ("scanned", c_uint64),
        ("zero", c_uint64),
        ("merged", c_uint64),
        ("freed", c_uint64),
    ]


class RefTableInfo(Sized):
    """pm_ref_table_info"""

    stride: int
    base: int | None
    first_pfn: int
    count: int
    _fields_ = [
        ("size", c_uint32),
        ("stride", c_uint32),
        ("base", c_void_p),
        ("first_pfn", c_uint64),
        ("count", c_uint64),
    ]


MMIORead = ctypes.CFUNCTYPE(c_int, c_void_p, c_uint64, c_uint32, POINTER(c_uint64))
MMIOWrite = ctypes.CFUNCTYPE(c_int, c_void_p, c_uint64, c_uint32, c_uint64)
MMIORelease = ctypes.CFUNCTYPE(None, c_void_p)


class MMIOOps(Sized):
    """pm_mmio_ops"""

    _fields_ = [
        ("size", c_uint32),
        ("reserved", c_uint32),
        ("read", MMIORead),
        ("write", MMIOWrite),
        ("release", MMIORelease),
    ]


_OUT64 = POINTER(c_uint64)
_HANDLE = c_void_p

# Each function with its arguments; all return an int that is negative for an error.
_FUNCTIONS: dict[str, list[Any]] = {
    "pm_open_options": [POINTER(Options), POINTER(_HANDLE)],
    "pm_close": [_HANDLE],
    "pm_fork": [_HANDLE, POINTER(_HANDLE)],
    "pm_machine_get_info": [_HANDLE, POINTER(MachineInfo)],
    "pm_finding": [_HANDLE, U64, c_void_p, U64],
    "pm_regions_generation": [_HANDLE, _OUT64],
    "pm_regions": [_HANDLE, POINTER(RegionRecord), POINTER(c_uint32)],
    "pm_region_add": [_HANDLE, POINTER(RegionRecord)],
    "pm_region_remove": [_HANDLE, U64],
    "pm_rom_write": [_HANDLE, U64, c_void_p, U64],
    "pm_mmio_add": [_HANDLE, U64, U64, POINTER(MMIOOps), c_void_p],
    "pm_read": [_HANDLE, U64, c_void_p, U64],
    "pm_write": [_HANDLE, U64, c_void_p, U64],
    "pm_fill": [_HANDLE, U64, U8, U64],
    "pm_load": [_HANDLE, U64, U32, _OUT64],
    "pm_store": [_HANDLE, U64, U32, U64],
    "pm_atomic_load": [_HANDLE, U64, U32, _OUT64],
    "pm_atomic_store": [_HANDLE, U64, U32, U64],
    "pm_atomic_cas": [_HANDLE, U64, U32, _OUT64, U64],
    "pm_translate": [_HANDLE, U64, U64, U32, POINTER(c_void_p)],
    "pm_translate_host": [_HANDLE, c_void_p, _OUT64],
    "pm_dirty_enable": [_HANDLE],
    "pm_dirty_disable": [_HANDLE],
    "pm_dirty_mark": [_HANDLE, U64, U64],
    "pm_dirty_begin": [_HANDLE, POINTER(_HANDLE)],
    "pm_dirty_count": [_HANDLE, _OUT64],
    "pm_dirty_next": [_HANDLE, _OUT64, _OUT64],
    "pm_dirty_commit": [_HANDLE],
    "pm_dirty_abort": [_HANDLE],
    "pm_balloon_inflate": [_HANDLE, U64, U64],
    "pm_balloon_deflate": [_HANDLE, U64, U64],
    "pm_merge": [_HANDLE, POINTER(MergeResult)],
    "pm_cpu_claim": [_HANDLE, U32, POINTER(_HANDLE)],
    "pm_cpu_release": [_HANDLE],
    "pm_alloc_pages": [_HANDLE, U32, U32, c_int32, _OUT64],
    "pm_free_pages": [_HANDLE, U64, U32],
    "pm_put_page": [_HANDLE, U64],
    "pm_get_page": [_HANDLE, U64],
    "pm_try_get_page": [_HANDLE, U64],
    "pm_page_refcount": [_HANDLE, U64, POINTER(c_int32)],
    "pm_ref_table": [_HANDLE, POINTER(RefTableInfo)],
    "pm_report_free_pages": [_HANDLE, U32, U64, _OUT64],
    "pm_map_kvm": [_HANDLE, c_int, U32, U32],
    "pm_unmap_kvm": [_HANDLE, c_int, U32],
    "pm_collect_kvm": [_HANDLE, c_int, U32],
    "pm_qemu_args": [_HANDLE, c_void_p, U64],
    "pm_vhost_user_add": [_HANDLE, c_int, U32],
}

# What a device's handler raised in this thread, for the error of the access that called it.
_raised = threading.local()


def note_raised(error: BaseException) -> None:
    """Keeps what a device's handler raised, as the cause of the error that the access will raise."""
    _raised.error = error


def _load() -> ctypes.CDLL:
    # The environment names another library than the one that the loader finds: a build in its tree.
    library = ctypes.CDLL(os.environ.get("PHYSMEM_LIBRARY", "libphysmem.so.0"))
    library.pm_abi_version.argtypes = []
    library.pm_abi_version.restype = c_uint32
    version = library.pm_abi_version()
    if version != ABI_VERSION:
        raise ImportError(f"libphysmem has ABI {version}; this package needs {ABI_VERSION}")
    library.pm_last_error.argtypes = []
    library.pm_last_error.restype = ctypes.c_char_p
    for name, arguments in _FUNCTIONS.items():
        # A library that is older may have fewer functions: what needs those raises AttributeError.
        function = getattr(library, name, None)
        if function is None:
            continue
        function.argtypes = arguments
        function.restype = c_int
        function.errcheck = _check
    return library


def _check(result: int, _function: Any, _arguments: Any) -> int:
    if result >= 0:
        return result
    text: bytes = library.pm_last_error()
    cause: BaseException | None = getattr(_raised, "error", None)
    _raised.error = None
    raise PhysmemError(-result, text.decode(errors="replace") or os.strerror(-result)) from cause


library = _load()
