"""Tune glibc's allocator for messages of 120,000 bytes; silent where it is not glibc.

A chunk with its envelope is just below glibc's 128 KiB limit, above which each buffer is a fresh
mapping that the kernel must clear. paho joins and copies buffers across that limit: receiving costs up to
four times as much (measured: 256 KiB chunks 1 -> 10, 217 ms untuned and 105 ms tuned).
"""

import ctypes
from typing import Final

# mallopt(3)
_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
_MB: Final = 2**20


def tune(*, small: bool = False) -> bool:
    """Keep message buffers on the heap; returns whether the C library took it. Call once, at start.

    `small` is for nodes: freed memory above 2 MB goes back to the system and nothing is reserved ahead.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # musl, macOS and Windows have none
        return False
    options = (
        ((_M_MMAP_THRESHOLD, 1 * _MB), (_M_TRIM_THRESHOLD, 2 * _MB), (_M_TOP_PAD, 128 * 1024))
        if small
        else ((_M_MMAP_THRESHOLD, 32 * _MB), (_M_TRIM_THRESHOLD, 128 * _MB), (_M_TOP_PAD, 16 * _MB))
    )
    taken = [mallopt(option, value) == 1 for option, value in options]
    return all(taken)
