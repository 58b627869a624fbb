"""How the C library keeps memory that a program has freed."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Ask glibc to reuse large freed blocks in place of giving them back to the system. False where there is no glibc.

    XLA on a CPU takes its temporaries from malloc anew in each step. By default each one is mapped, faulted in page by
    page, and unmapped: some hundred thousand page faults a second at 32 sequences.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST))
