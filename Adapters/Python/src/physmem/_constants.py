"""The enumerations of physmem.h, and the sizes people write."""

from __future__ import annotations

import enum
import re

from ._abi import in_range


class Backing(enum.IntEnum):
    """What a machine's memory is made of (enum pm_backing)."""

    MEMFD = 0
    HUGETLB = 1
    ANONYMOUS = 2
    ANONYMOUS_THP = 3


class KVMModel(enum.IntEnum):
    """How KVM treats the pages that it maps (enum pm_kvm_model)."""

    DEFAULT = 0
    A0 = 1
    A = 2
    B = 3
    C = 4


class FreePagesModel(enum.IntEnum):
    """What __free_pages does to a block that is still referenced (enum pm_free_pages_model)."""

    DEFAULT = 0
    BEFORE_TAIL_FIX = 1
    HEAD_READ_AFTER_PUT = 2
    HEAD_READ_BEFORE_PUT = 3


class RefcountLayout(enum.IntEnum):
    """Where the counts lie (enum pm_refcount_layout)."""

    PACKED = 0
    STRIDED = 1


class OpenFlags(enum.IntFlag):
    """enum pm_open_flags"""

    RESERVE = 1
    PC_LAYOUT = 2


class RegionKind(enum.IntEnum):
    """enum pm_region_kind"""

    RAM = 0
    ROM = 1
    MMIO = 2
    PMEM = 3


class Protection(enum.IntFlag):
    """What a guest may do (enum pm_protection)."""

    READ = 1
    WRITE = 2
    EXEC = 4


class KVMFlags(enum.IntFlag):
    """enum pm_kvm_flags"""

    LOG_DIRTY_PAGES = 1


class VhostUserFlags(enum.IntFlag):
    """What was negotiated (enum pm_vhost_user_flags)."""

    REPLY_ACK = 1
    CONFIGURE_MEM_SLOTS = 2


class GFP(enum.IntFlag):
    """Allocation flags, as Linux 6.1 has them."""

    ZERO = 0x100
    DIRECT_RECLAIM = 0x400
    NOWARN = 0x2000
    COMP = 0x40000
    ATOMIC = 0xA20
    KERNEL = 0xCC0
    HIGHUSER_MOVABLE = 0x100CCA


def byte_count(size: int | str) -> int:
    """A number of bytes, or text as 4096, 64K, 64M, 2G, 1T."""
    if not isinstance(size, str):
        return in_range(size, 1 << 64)
    match = re.fullmatch(r"(\d+)([KMGT]?)", size)
    if match is None:
        raise ValueError(f"{size!r} is no size: a number, and K, M, G or T (of 1024) if any")
    return int(match[1]) << 10 * "_KMGT".index(match[2] or "_")
