"""Keeps glibc's malloc from mapping and unmapping memory for every chunk a socket delivers.

Chunks of 256 KiB lie beyond glibc's threshold of 128 KiB, above which each allocation is its own mapping: fault in,
copy, unmap, thousands of times for one large body. Other C libraries are left alone.
"""

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_OPTIONS = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 1 << 30, _TOP_PAD: 64 << 20}


def keep_memory() -> None:
    """Let freed memory be used again instead of going back to the system. Only for the service's own process."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, nbytes in _OPTIONS.items():
            libc.mallopt(option, nbytes)
