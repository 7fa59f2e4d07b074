"""Guest memory from Python: an array that is the memory, a device, dirty pages, pages and their counts."""

import errno
import mmap

import numpy

import physmem

DEVICE = 0xD000_0000

with physmem.Machine("64M", cpus=2) as machine:
    # No copy: what C writes is in the array, what numpy writes is in guest memory, and in the file.
    words = machine.array(0x10_0000, 512, "u8")
    machine.store(0x10_0000 + 8 * 511, 42)
    assert words[511] == 42
    words[:511] = numpy.arange(511)
    assert machine.load(0x10_0000 + 8 * 7) == 7
    ram = machine.regions[0]
    with mmap.mmap(ram.fd, ram.length, offset=ram.fd_offset) as file:
        file[0x10_0000:0x10_0008] = b"Python!\0"
    assert machine.read(0x10_0000, 7) == words[:1].tobytes()[:7] == b"Python!"
    print(f"an array of {words.nbytes} bytes shows the memory itself")

    # A device: its registers are functions.
    told: list[int] = []
    machine.add_mmio(DEVICE, 4096, lambda offset, _: offset + 1, lambda _, __, value: told.append(value))
    machine.store(DEVICE + 8, 0x1234, 4)
    assert told == [0x1234] and machine.load(DEVICE + 16, 4) == 17
    print(f"the device was told {told[0]:#x}")

    # Dirty pages: what an exception leaves is harvested again.
    with machine.tracking_dirty():
        machine.write(0x2FFF, b"ab")
        words[0] = 1
        machine.mark_dirty(0x10_0000, 8)  # An array's writes are nobody's call.
        try:
            with machine.harvest():
                raise TimeoutError("the copy failed")
        except TimeoutError:
            pass
        with machine.harvest() as harvest:
            runs = list(harvest)
    assert runs == [(0x2000, 0x2000), (0x10_0000, 0x1000)]
    print("dirty:", ", ".join(f"{length:#x} bytes at {gpa:#x}" for gpa, length in runs))

    # Pages: the second reference keeps the head, __free_pages frees the tails.
    with machine.claim_cpu(0) as cpu:
        pfn = cpu.alloc_pages(order=2, gfp=physmem.GFP.HIGHUSER_MOVABLE)
        machine.get_page(pfn)
        cpu.free_pages(pfn, order=2)
        assert machine.refcount(pfn) == 1 and not machine.try_get_page(pfn + 1)
        cpu.put_page(pfn)
    try:
        machine.write(64 << 20, b"past the end")
    except physmem.PhysmemError as error:
        assert error.errno == errno.EFAULT
        print("refused:", error.strerror)
