"""The physical memory of a Linux machine: guest RAM, page allocator, reference counts (libphysmem).

    with physmem.Machine("64M") as machine:
        machine.store(0x1000, 42)
        words = machine.array(0x1000, 512, "u8")  # the guest's memory itself
"""

from ._abi import MachineInfo, MergeResult, PhysmemError
from ._constants import (
    GFP,
    Backing,
    FreePagesModel,
    KVMFlags,
    KVMModel,
    OpenFlags,
    Protection,
    RefcountLayout,
    RegionKind,
    VhostUserFlags,
)
from ._handles import CPU, Harvest
from ._machine import Machine, Region

__all__ = [
    "CPU",
    "GFP",
    "Backing",
    "FreePagesModel",
    "Harvest",
    "KVMFlags",
    "KVMModel",
    "Machine",
    "MachineInfo",
    "MergeResult",
    "OpenFlags",
    "PhysmemError",
    "Protection",
    "RefcountLayout",
    "Region",
    "RegionKind",
    "VhostUserFlags",
]
