"""Tune glibc's malloc for receive buffers.

A socket delivers chunks of 256 KiB. glibc maps each allocation above 128 KiB separately. For one large body, that means
thousands of mappings, page faults and unmappings. Other C libraries are not changed.
"""

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_OPTIONS = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 1 << 30, _TOP_PAD: 64 << 20}


def keep_memory() -> None:
    """Reuse freed memory instead of returning it to the system. Call this in the service's own process only."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, nbytes in _OPTIONS.items():
            libc.mallopt(option, nbytes)
