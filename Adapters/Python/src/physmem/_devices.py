"""Devices whose registers are functions of Python."""

from __future__ import annotations

import errno
import itertools
from typing import Any, Callable, NamedTuple, Optional

from ._abi import MMIOOps, MMIORead, MMIORelease, MMIOWrite, in_range, note_raised

#: Takes offset and width in bytes, returns the value.
ReadHandler = Callable[[int, int], int]
#: Takes offset, width in bytes, and the value.
WriteHandler = Callable[[int, int, int], None]


class Device(NamedTuple):
    """The handlers of one MMIO region."""

    read: Optional[ReadHandler]
    write: Optional[WriteHandler]


# By the number that the library passes around for each. A device stays until the library releases it.
_devices: dict[int, Device] = {}
_numbers = itertools.count(1)


def _refusal(error: BaseException) -> int:
    note_raised(error)
    if isinstance(error, OSError) and error.errno:
        return -error.errno
    return -errno.EIO


def _read(opaque: int, offset: int, width: int, value: Any) -> int:
    try:
        handler = _devices[opaque].read
        if handler is None:
            return -errno.EACCES
        value[0] = in_range(handler(offset, width), 1 << 8 * width)
        return 0
    except BaseException as error:  # What leaves a callback of ctypes is printed and lost.
        return _refusal(error)


def _write(opaque: int, offset: int, width: int, value: int) -> int:
    try:
        handler = _devices[opaque].write
        if handler is None:
            return -errno.EACCES
        handler(offset, width, value)
        return 0
    except BaseException as error:
        return _refusal(error)


def _release(opaque: int) -> None:
    _devices.pop(opaque, None)


# These must stay as long as the library may call them: for good.
OPERATIONS = MMIOOps(read=MMIORead(_read), write=MMIOWrite(_write), release=MMIORelease(_release))


def register(device: Device) -> int:
    """Keeps the device, and returns its number."""
    number = next(_numbers)
    _devices[number] = device
    return number


def unregister(number: int) -> None:
    """Forgets a device that the library did not take."""
    _devices.pop(number, None)
