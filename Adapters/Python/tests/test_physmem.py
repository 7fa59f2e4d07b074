"""The package on the real library."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import shutil
import subprocess
import tempfile
import threading
import unittest

import numpy

import physmem
from physmem import GFP, PhysmemError, RegionKind, _abi, _constants, _devices

MIB = 1 << 20


class MachineTestCase(unittest.TestCase):
    def setUp(self) -> None:
        self.machine = physmem.Machine("16M", cpus=2)
        self.addCleanup(self.machine.close)

    def assert_refused(self, number: int, call: object, *arguments: object) -> PhysmemError:
        with self.assertRaises(PhysmemError) as caught:
            call(*arguments)  # type: ignore[operator]
        self.assertEqual(caught.exception.errno, number)
        self.assertTrue(caught.exception.strerror)
        return caught.exception


class Access(MachineTestCase):
    def test_what_is_written_is_read(self) -> None:
        self.machine.write(0x1001, b"physmem")
        self.assertEqual(self.machine.read(0x1000, 9), b"\0physmem\0")
        self.machine.write(0x2000, numpy.arange(4, dtype="u4").data)
        self.assertEqual(self.machine.load(0x2004, 8), 1 | 2 << 32)
        into = bytearray(4)
        self.machine.read_into(0x1003, into)
        self.assertEqual(into, b"ysme")
        self.machine.fill(0x3000, 0xA5, 4096)
        self.assertEqual(self.machine.read(0x3000, 4096), b"\xa5" * 4096)
        self.assertEqual(self.machine.read(0x3000, 0), b"")

    def test_words_of_each_width(self) -> None:
        for width in (1, 2, 4, 8):
            top = (1 << 8 * width) - 1
            self.machine.store(0x1000, top, width)
            self.assertEqual(self.machine.load(0x1000, width), top)
            self.machine.atomic_store(0x1000, top - 1, width)
            self.assertEqual(self.machine.atomic_load(0x1000, width), top - 1)
            self.assertEqual(self.machine.compare_exchange(0x1000, top, 5, width), (False, top - 1))
            self.assertEqual(self.machine.compare_exchange(0x1000, top - 1, 5, width), (True, top - 1))
            self.assertEqual(self.machine.load(0x1000, width), 5)
            with self.assertRaises(ctypes.ArgumentError):
                self.machine.store(0x1000, top + 1, width)

    def test_numbers_are_not_cut(self) -> None:
        for gpa in (-1, 1 << 64):
            with self.assertRaises(ctypes.ArgumentError):
                self.machine.load(gpa)
        with self.assertRaises(ctypes.ArgumentError):
            self.machine.fill(0, 256, 1)
        with self.assertRaises(ctypes.ArgumentError):
            self.machine.read(0, -1)

    def test_errors_have_number_and_text(self) -> None:
        error = self.assert_refused(errno.EFAULT, self.machine.read, 16 * MIB - 4, 8)
        self.assertIsInstance(error, OSError)
        self.assert_refused(errno.EINVAL, self.machine.load, 0, 3)
        self.assert_refused(errno.EINVAL, physmem.Machine, 4096)
        with self.assertRaises(ValueError):
            physmem.Machine("64MB")

    def test_closed(self) -> None:
        self.machine.close()
        self.machine.close()
        self.assert_refused(errno.EBADF, self.machine.load, 0)


class Views(MachineTestCase):
    def test_an_array_is_the_memory(self) -> None:
        words = self.machine.array(0x10000, (4, 8), "u8")
        self.assertEqual(words.shape, (4, 8))
        self.machine.store(0x10000 + 8 * 9, 77)  # C writes
        self.assertEqual(words[1, 1], 77)
        words[3, 7] = 99  # numpy writes
        self.assertEqual(self.machine.load(0x10000 + 8 * 31), 99)
        region = self.machine.regions[0]
        self.assertEqual(words.ctypes.data, (region.hva or 0) + 0x10000)
        with mmap.mmap(region.fd, region.length, offset=region.fd_offset) as file:  # another mapping writes
            file[0x10000:0x10008] = (123456789).to_bytes(8, "little")
        self.assertEqual(words[0, 0], 123456789)

    def test_a_view_that_may_not_write(self) -> None:
        view = self.machine.view(0, 16, writable=False)
        self.assertTrue(view.readonly)
        self.assertFalse(self.machine.array(0, 16, writable=False).flags.writeable)

    def test_views_outlive_the_machine(self) -> None:
        self.machine.store(0, 5)
        array = self.machine.array(0, 4, "u8")
        part = array[:2]
        memory = self.machine._memory
        self.machine.close()
        del array
        gc.collect()
        self.assertEqual(part[0], 5)
        self.assertIsNotNone(memory._unclosed)
        del part
        gc.collect()
        self.assertIsNone(memory._unclosed)

    def test_a_region_that_is_viewed_stays(self) -> None:
        generation = self.machine.generation
        self.machine.add_region(1 << 32, 2 * MIB)
        view = self.machine.view((1 << 32) + 4096, 8)
        with self.assertRaises(BufferError):
            self.machine.remove_region(1 << 32)
        view.release()
        del view
        gc.collect()
        self.machine.remove_region(1 << 32)
        self.assertEqual(len(self.machine.regions), 1)
        self.assertEqual(self.machine.generation, generation + 2)
        self.assert_refused(errno.ENOENT, self.machine.remove_region, 1 << 32)

    def test_no_view_past_a_region(self) -> None:
        self.assert_refused(errno.EFAULT, self.machine.view, 16 * MIB - 4, 8)


class Regions(MachineTestCase):
    def test_kinds(self) -> None:
        self.machine.add_region(0x4000_0000, 65536, RegionKind.ROM)
        self.machine.write_rom(0x4000_0000, b"rom")
        self.assertEqual(self.machine.read(0x4000_0000, 3), b"rom")
        self.assert_refused(errno.EACCES, self.machine.write, 0x4000_0000, b"x")
        kinds = [(region.gpa, region.kind) for region in self.machine.regions]
        self.assertEqual(kinds, [(0, RegionKind.RAM), (0x4000_0000, RegionKind.ROM)])
        self.assert_refused(errno.EEXIST, self.machine.add_region, 0, 4096)

    def test_more_regions_than_asked_for_at_first(self) -> None:
        for index in range(12):
            self.machine.add_region((1 << 32) + index * 65536, 4096)
        self.assertEqual(len(self.machine.regions), 13)
        self.assertEqual(self.machine.info.regions, 13)

    def test_device(self) -> None:
        calls: list[tuple[int, int, int]] = []
        def write(offset: int, width: int, value: int) -> None:
            calls.append((offset, width, value))

        self.machine.add_mmio(0xD000_0000, 16, lambda offset, width: offset * 16 + width, write)
        self.assertEqual(self.machine.load(0xD000_0004, 4), 0x44)
        self.machine.store(0xD000_0008, 0x1234, 2)
        self.assertEqual(calls, [(8, 2, 0x1234)])
        self.assertEqual(self.machine.regions[1].hva, None)
        devices = len(_devices._devices)
        self.machine.remove_region(0xD000_0000)
        self.assertEqual(len(_devices._devices), devices - 1)

    def test_a_device_that_raises(self) -> None:
        def fail(offset: int, width: int) -> int:
            raise (OSError(errno.ENXIO, "no card") if offset else KeyError("register"))

        self.machine.add_mmio(0xD000_0000, 16, fail)
        error = self.assert_refused(errno.EIO, self.machine.load, 0xD000_0000)
        self.assertIsInstance(error.__cause__, KeyError)
        error = self.assert_refused(errno.ENXIO, self.machine.load, 0xD000_0008)
        self.assertIsInstance(error.__cause__, OSError)
        error = self.assert_refused(errno.EACCES, self.machine.store, 0xD000_0000, 1)
        self.assertIsNone(error.__cause__)


class Dirty(MachineTestCase):
    def test_harvest_in_two_phases(self) -> None:
        self.assert_refused(errno.ENODATA, self.machine.harvest)
        with self.machine.tracking_dirty():
            self.machine.write(0x3FFF, b"ab")
            with self.assertRaises(RuntimeError), self.machine.harvest() as harvest:
                self.assertEqual(list(harvest), [(0x3000, 0x2000)])
                self.machine.store(0x8000, 1)
                raise RuntimeError("the copy failed")
            view = self.machine.view(0x20000, 8)
            view[0] = 1
            self.machine.mark_dirty(0x20000, 1)
            with self.machine.harvest() as harvest:
                self.assertEqual(harvest.page_count, 4)
                self.assertEqual(list(harvest), [(0x3000, 0x2000), (0x8000, 0x1000), (0x20000, 0x1000)])
            with self.machine.harvest() as harvest:
                self.assertEqual(list(harvest), [])
        self.assert_refused(errno.ENODATA, self.machine.harvest)


class Pages(MachineTestCase):
    def test_counts(self) -> None:
        first, counts = self.machine.refcounts()
        with self.machine.claim_cpu(0) as cpu:
            pfn = cpu.alloc_pages(2, GFP.KERNEL)
            self.assertEqual(self.machine.refcount(pfn), 1)
            self.assertEqual(counts[pfn - first], 1)
            self.machine.get_page(pfn)
            self.assertTrue(self.machine.try_get_page(pfn))
            self.assertEqual(counts[pfn - first], 3)
            cpu.put_page(pfn)
            cpu.put_page(pfn)
            cpu.free_pages(pfn, 2)
            self.assertEqual(counts[pfn - first], 0)
            self.assertFalse(self.machine.try_get_page(pfn))
            self.assert_refused(errno.EINVAL, cpu.alloc_pages, 11)
        with self.assertRaises(ValueError):
            counts[0] = 1
        self.assert_refused(errno.EINVAL, self.machine.refcount, self.machine.info.frame_count)
        self.assert_refused(errno.ENODEV, self.machine.claim_cpu, 2)

    def test_threads(self) -> None:
        pfns: list[int] = []

        def work(index: int) -> None:
            with self.machine.claim_cpu(index) as cpu:
                mine = [cpu.alloc_pages() for _ in range(200)]
                pfns.extend(mine)
                for pfn in mine:
                    cpu.free_pages(pfn)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(pfns), 400)
        self.assertEqual(self.machine.findings(), [])

    def test_memory_given_back(self) -> None:
        self.machine.fill(0, 7, 2 * MIB)
        self.machine.inflate_balloon(0, 2 * MIB)
        self.assertEqual(self.machine.read(MIB, 8), bytes(8))
        self.machine.deflate_balloon(0, 2 * MIB)
        self.assertGreaterEqual(self.machine.merge().scanned, 0)
        with self.machine.claim_cpu() as cpu:
            self.assertGreaterEqual(cpu.report_free_pages(), 0)


class Processes(MachineTestCase):
    def test_machine_fork(self) -> None:
        self.machine.store(0, 1)
        with self.machine.fork() as child:
            self.machine.store(0, 2)
            self.assertEqual((self.machine.load(0), child.load(0)), (2, 1))

    def test_process_fork(self) -> None:
        self.machine.store(0, 1)
        view = self.machine.view(0, 8)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                self.machine.load(0)
            except PhysmemError as error:
                view[0] = 9  # Shared memory is.
                self.machine.close()
                status = 0 if error.errno == errno.ECHILD else 2
            finally:
                os._exit(status)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)
        self.assertEqual(self.machine.load(0), 9)

    def test_qemu_arguments(self) -> None:
        with physmem.Machine("16M", flags=physmem.OpenFlags.PC_LAYOUT) as machine:
            self.assertIn("memory-backend-file", machine.qemu_args())


class Layout(unittest.TestCase):
    """The structures and numbers against the header, by a C compiler."""

    STRUCTS = {
        "pm_options": _abi.Options,
        "pm_machine_info": _abi.MachineInfo,
        "pm_region": _abi.RegionRecord,
        "pm_merge_result": _abi.MergeResult,
        "pm_ref_table_info": _abi.RefTableInfo,
        "pm_mmio_ops": _abi.MMIOOps,
    }
    ENUMS = {
        "PM_BACKING_": _constants.Backing,
        "PM_KVM_MODEL_": _constants.KVMModel,
        "PM_FREE_PAGES_": _constants.FreePagesModel,
        "PM_REFCOUNT_LAYOUT_": _constants.RefcountLayout,
        "PM_OPEN_": _constants.OpenFlags,
        "PM_REGION_": _constants.RegionKind,
        "PM_PROT_": _constants.Protection,
        "PM_KVM_": _constants.KVMFlags,
        "PM_VHOST_USER_": _constants.VhostUserFlags,
    }

    def test_header(self) -> None:
        lines, expected = [], []
        for name, structure in self.STRUCTS.items():
            lines.append(f"sizeof({name})")
            expected.append(ctypes.sizeof(structure))
            for field, *_ in structure._fields_:
                lines.append(f"offsetof({name}, {field})")
                expected.append(getattr(structure, field).offset)
        for prefix, enumeration in self.ENUMS.items():
            for member in enumeration:
                lines.append(prefix + member.name)
                expected.append(member.value)
        lines.append("PM_ABI_VERSION")
        expected.append(_abi.ABI_VERSION)
        compiler = shutil.which("cc")
        if compiler is None:
            self.skipTest("SKIPPED: no C compiler")
        flags = subprocess.check_output(["pkg-config", "--cflags", "physmem"], text=True).split()
        body = "".join(f'printf("%llu\\n", (unsigned long long)({line}));' for line in lines)
        with tempfile.TemporaryDirectory() as folder:
            source = os.path.join(folder, "layout.c")
            with open(source, "w") as file:
                file.write(f"#include <stdio.h>\n#include <physmem.h>\nint main(void) {{ {body} return 0; }}\n")
            subprocess.check_call([compiler, *flags, "-o", source + ".out", source])
            found = subprocess.check_output([source + ".out"], text=True).split()
        self.assertEqual(dict(zip(lines, map(int, found))), dict(zip(lines, expected)))


if __name__ == "__main__":
    unittest.main()
