"""How the C library keeps memory that a program has freed, and when it gives it back."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

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


def huge_pages_on_demand(root: Path = Path("/")) -> bool:
    """Whether the system backs private memory with huge pages where a program asks for it, as numpy does."""
    try:
        modes = (root / "sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return False
    return "[always]" in modes or "[madvise]" in modes


def give_back_freed_memory() -> bool:
    """Return to the system, once, what is free now: what compiling took is not needed again. False without glibc."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError):  # another C library
        return False
