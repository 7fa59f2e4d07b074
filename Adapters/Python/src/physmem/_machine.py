"""A machine's memory."""

from __future__ import annotations

import ctypes
import errno
from contextlib import contextmanager
from ctypes import byref, c_int32, c_uint32, c_uint64, c_void_p
from types import TracebackType
from typing import TYPE_CHECKING, Any, Iterator, NamedTuple, Optional

from . import _devices
from ._abi import MachineInfo, MergeResult, Options, PhysmemError, RefTableInfo, RegionRecord, in_range, library
from ._constants import (
    Backing,
    FreePagesModel,
    KVMFlags,
    KVMModel,
    OpenFlags,
    Protection,
    RefcountLayout,
    RegionKind,
    VhostUserFlags,
    byte_count,
)
from ._handles import CPU, Harvest, new_bytes, pointer
from ._memory import MachineMemory

if TYPE_CHECKING:
    import numpy
    from numpy.typing import DTypeLike, NDArray

_PAGE = 4096


class Region(NamedTuple):
    """A range of guest memory. Its fd is the library's: it lives as long as the region."""

    gpa: int
    length: int
    kind: RegionKind
    fd: int
    fd_offset: int
    hva: Optional[int]
    page_size: int
    protection: Protection
    backing: Backing
    numa_node: int


class Machine:
    """Physical memory, its allocator and its counts; a context manager that closes it.

    `memory` is bytes or text as "64M". Errors of the library are PhysmemError, an OSError with its errno; a number
    that an argument cannot hold is a ctypes.ArgumentError. Any thread may call any method at any time.
    """

    def __init__(
        self,
        memory: int | str,
        *,
        cpus: int = 1,
        backing: Backing = Backing.MEMFD,
        huge_page_size: int | str = 0,
        numa_node: int = -1,
        flags: OpenFlags = OpenFlags(0),
        kvm_model: KVMModel = KVMModel.DEFAULT,
        free_pages_model: FreePagesModel = FreePagesModel.DEFAULT,
        refcount_layout: RefcountLayout = RefcountLayout.PACKED,
    ) -> None:
        options = Options(
            memory=byte_count(memory),
            cpus=cpus,
            backing=backing,
            huge_page_size=byte_count(huge_page_size),
            numa_node=numa_node,
            flags=flags,
            kvm_model=kvm_model,
            free_pages_model=free_pages_model,
            refcount_layout=refcount_layout,
        )
        handle = c_void_p()
        library.pm_open_options(byref(options), byref(handle))
        self._memory = MachineMemory(handle.value or 0)

    @property
    def _handle(self) -> int | None:
        return self._memory.handle

    def close(self) -> None:
        """Ends the machine. Its memory goes when the last view or array of it has gone; a second call does nothing."""
        self._memory.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_memory"):  # Not where __init__ raised.
            self.close()

    def fork(self) -> Machine:
        """A copy as it is now, memory copy-on-write. No CPU may be claimed."""
        handle = c_void_p()
        library.pm_fork(self._handle, byref(handle))
        child = object.__new__(Machine)
        child._memory = MachineMemory(handle.value or 0)
        return child

    @property
    def info(self) -> MachineInfo:
        """Sizes and counts, as of now."""
        info = MachineInfo()
        library.pm_machine_get_info(self._handle, byref(info))
        return info

    def findings(self) -> list[str]:
        """What the modelled kernel would have reported, a line each."""
        lines = []
        for index in range(self.info.finding_count):
            lines.append(_text("pm_finding", self._handle, index))
        return lines

    # Regions

    @property
    def regions(self) -> list[Region]:
        """The regions in ascending order, as of one moment."""
        count = c_uint32(8)
        while True:
            records = (RegionRecord * count.value)()
            records[0].size = ctypes.sizeof(RegionRecord)
            try:
                library.pm_regions(self._handle, records, byref(count))
            except PhysmemError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue
            return [_region(record) for record in records[: count.value]]

    @property
    def generation(self) -> int:
        """How many regions have been added and removed so far."""
        generation = c_uint64()
        library.pm_regions_generation(self._handle, byref(generation))
        return generation.value

    def add_region(
        self,
        gpa: int,
        length: int,
        kind: RegionKind = RegionKind.RAM,
        *,
        fd: int = -1,
        fd_offset: int = 0,
        backing: Backing = Backing.MEMFD,
        page_size: int = _PAGE,
        numa_node: int = -1,
    ) -> None:
        """Adds RAM, ROM or persistent memory: zeroed, or what `fd` has from `fd_offset` on."""
        record = RegionRecord(
            kind=kind,
            gpa=gpa,
            len=length,
            fd=fd,
            fd_offset=fd_offset,
            backing=backing,
            page_size=page_size,
            numa_node=numa_node,
        )
        library.pm_region_add(self._handle, byref(record))

    def add_mmio(
        self,
        gpa: int,
        length: int,
        read: _devices.ReadHandler | None = None,
        write: _devices.WriteHandler | None = None,
    ) -> None:
        """Adds a device: accesses call read(offset, width) and write(offset, width, value).

        They run in the thread of the access. What they raise is the cause of the PhysmemError that the access
        raises, whose errno is an OSError's own, else EIO.
        """
        number = _devices.register(_devices.Device(read, write))
        try:
            library.pm_mmio_add(self._handle, gpa, length, byref(_devices.OPERATIONS), number)
        except BaseException:
            _devices.unregister(number)
            raise

    def remove_region(self, gpa: int) -> None:
        """Removes the region that begins at `gpa`. BufferError while a view or array shows some of it."""
        length = next((region.length for region in self.regions if region.gpa == gpa), 0)
        self._memory.remove_region(gpa, length)

    # Access

    def read(self, gpa: int, length: int) -> bytes:
        """A copy of `length` bytes."""
        data = new_bytes(length)
        library.pm_read(self._handle, gpa, data, length)
        return data

    def read_into(self, gpa: int, data: bytearray | memoryview) -> None:
        """Copies as many bytes as `data` has into it."""
        if memoryview(data).readonly:
            raise TypeError("the buffer is read-only")
        library.pm_read(self._handle, gpa, *pointer(data))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copies `data`, any contiguous buffer, into guest memory."""
        library.pm_write(self._handle, gpa, *pointer(data))

    def write_rom(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """As write(), also into ROM."""
        library.pm_rom_write(self._handle, gpa, *pointer(data))

    def fill(self, gpa: int, byte: int, length: int) -> None:
        """Writes `length` bytes of one value."""
        library.pm_fill(self._handle, gpa, byte, length)

    def load(self, gpa: int, width: int = 8) -> int:
        """One load of 1, 2, 4 or 8 bytes."""
        value = c_uint64()
        library.pm_load(self._handle, gpa, width, byref(value))
        return value.value

    def store(self, gpa: int, value: int, width: int = 8) -> None:
        """One store of 1, 2, 4 or 8 bytes."""
        library.pm_store(self._handle, gpa, width, _word(value, width))

    def atomic_load(self, gpa: int, width: int = 8) -> int:
        """An acquiring load, atomic to guests and other processes too."""
        value = c_uint64()
        library.pm_atomic_load(self._handle, gpa, width, byref(value))
        return value.value

    def atomic_store(self, gpa: int, value: int, width: int = 8) -> None:
        """A releasing store, atomic to guests and other processes too."""
        library.pm_atomic_store(self._handle, gpa, width, _word(value, width))

    def compare_exchange(self, gpa: int, expected: int, desired: int, width: int = 8) -> tuple[bool, int]:
        """Stores `desired` if the value is `expected`. Whether it was, and the value that was there."""
        found = c_uint64(_word(expected, width))
        exchanged = library.pm_atomic_cas(self._handle, gpa, width, byref(found), _word(desired, width))
        return exchanged == 1, found.value

    def view(self, gpa: int, length: int, writable: bool = True) -> memoryview:
        """The bytes themselves, not a copy, within one region. Writes are not in the dirty record: mark_dirty().

        The memory stays as long as the view, also when the machine is closed. ROM: `writable` False.
        """
        return self._memory.view(gpa, length, writable)

    def array(
        self, gpa: int, shape: int | tuple[int, ...], dtype: DTypeLike = "u1", writable: bool = True
    ) -> NDArray[Any]:
        """The same as an array of numpy."""
        import numpy

        kind: numpy.dtype[Any] = numpy.dtype(dtype)
        length = kind.itemsize
        for extent in (shape,) if isinstance(shape, int) else shape:
            length *= extent
        return numpy.frombuffer(self.view(gpa, length, writable), kind).reshape(shape)

    # Dirty pages

    def enable_dirty(self) -> None:
        """Begins the record of written pages, all clean."""
        library.pm_dirty_enable(self._handle)

    def disable_dirty(self) -> None:
        """Ends the record."""
        library.pm_dirty_disable(self._handle)

    @contextmanager
    def tracking_dirty(self) -> Iterator[None]:
        """The record of written pages for the time of a with statement."""
        self.enable_dirty()
        try:
            yield
        finally:
            self.disable_dirty()

    def mark_dirty(self, gpa: int, length: int) -> None:
        """Marks pages that were written by a view or a guest."""
        library.pm_dirty_mark(self._handle, gpa, length)

    def harvest(self) -> Harvest:
        """Takes the written pages out of the record."""
        return Harvest(self._memory)

    # Giving memory back

    def inflate_balloon(self, gpa: int, length: int) -> None:
        """Gives the range's pages to the host; they read as zero."""
        library.pm_balloon_inflate(self._handle, gpa, length)

    def deflate_balloon(self, gpa: int, length: int) -> None:
        """Takes the range out of the balloon."""
        library.pm_balloon_deflate(self._handle, gpa, length)

    def merge(self) -> MergeResult:
        """Lets equal pages share memory. Who writes by views and guests must be at rest."""
        result = MergeResult()
        library.pm_merge(self._handle, byref(result))
        return result

    # Pages

    def claim_cpu(self, index: int = 0) -> CPU:
        """A CPU, by which pages are allocated."""
        return CPU(self._memory, index)

    def get_page(self, pfn: int) -> None:
        """get_page: one reference more."""
        library.pm_get_page(self._handle, pfn)

    def try_get_page(self, pfn: int) -> bool:
        """One reference more, unless there is none; whether it was taken."""
        return bool(library.pm_try_get_page(self._handle, pfn))

    def refcount(self, pfn: int) -> int:
        """The count of this very frame."""
        count = c_int32()
        library.pm_page_refcount(self._handle, pfn, byref(count))
        return count.value

    def refcounts(self) -> tuple[int, NDArray[numpy.int32]]:
        """The first pfn, and the counts from there on: a read-only array over the library's own table."""
        import numpy

        table = RefTableInfo()
        library.pm_ref_table(self._handle, byref(table))
        length = (table.count - 1) * table.stride + 4
        view = self._memory.view_of_host(table.base or 0, length).toreadonly()
        counts: NDArray[numpy.int32] = numpy.ndarray((table.count,), numpy.int32, view, 0, (table.stride,))
        return table.first_pfn, counts

    # Guests

    def map_kvm(self, vm_fd: int, first_slot: int = 0, flags: KVMFlags = KVMFlags(0)) -> int:
        """Makes each region a memslot of the VM; returns how many."""
        return int(library.pm_map_kvm(self._handle, vm_fd, first_slot, flags))

    def unmap_kvm(self, vm_fd: int, first_slot: int = 0) -> None:
        """Deletes those memslots."""
        library.pm_unmap_kvm(self._handle, vm_fd, first_slot)

    def collect_kvm(self, vm_fd: int, first_slot: int = 0) -> None:
        """Adds KVM's dirty log to the record of written pages."""
        library.pm_collect_kvm(self._handle, vm_fd, first_slot)

    def qemu_args(self) -> str:
        """The arguments that make QEMU run on this memory."""
        return _text("pm_qemu_args", self._handle)

    def add_to_vhost_user(self, socket_fd: int, flags: VhostUserFlags = VhostUserFlags(0)) -> int:
        """Offers the shared regions to a vhost-user back end; returns how many."""
        return int(library.pm_vhost_user_add(self._handle, socket_fd, flags))


def _region(record: RegionRecord) -> Region:
    return Region(
        gpa=record.gpa,
        length=record.len,
        kind=RegionKind(record.kind),
        fd=record.fd,
        fd_offset=record.fd_offset,
        hva=record.hva,
        page_size=record.page_size,
        protection=Protection(record.prot),
        backing=Backing(record.backing),
        numa_node=record.numa_node,
    )


def _text(function: str, *arguments: int | None) -> str:
    """What a function writes into a buffer, its last two arguments, of the size it asks for."""
    size = 512
    while True:
        text = ctypes.create_string_buffer(size)
        length = getattr(library, function)(*arguments, text, size)
        if length < size:
            return text.value.decode(errors="replace")
        size = length + 1


def _word(value: int, width: int) -> int:
    """`value` if it fits into `width` bytes; a width that is none is the library's to refuse."""
    return in_range(value, 1 << 8 * width) if width in (1, 2, 4, 8) else value
