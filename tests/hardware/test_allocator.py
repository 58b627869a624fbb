"""Freed memory stays with the process: seen in the page faults of taking the same block again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from slipstream.hardware.allocator import huge_pages_on_demand

PROGRAM = """
import ctypes, resource, sys
from slipstream.hardware.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
SIZE = 40 << 20  # over glibc's own largest threshold

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(SIZE)
    ctypes.memset(block, 1, SIZE)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(sum(faults() for _ in range(5)))
"""


def faults(mode: str) -> int:
    run = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    return int(run.stdout)


def test_blocks_are_reused_without_page_faults() -> None:
    assert faults("default") > 50_000, "otherwise the allocator keeps memory by itself and this module has no use"
    assert faults("keep") < 100


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("always [madvise] never", True),
        ("[always] madvise never", True),
        ("always madvise [never]", False),
        (None, False),
    ],
)
def test_huge_pages_on_demand(tmp_path: Path, text: str | None, expected: bool) -> None:
    if text is not None:
        folder = tmp_path / "sys/kernel/mm/transparent_hugepage"
        folder.mkdir(parents=True)
        (folder / "enabled").write_text(text)
    assert huge_pages_on_demand(tmp_path) is expected


TRIM = """
import ctypes
from pathlib import Path
from slipstream.hardware.allocator import give_back_freed_memory, keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
SIZE = 64 << 20

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

assert keep_freed_memory()
before = resident()
blocks = [libc.malloc(SIZE) for _ in range(2)]
for block in blocks:
    ctypes.memset(block, 1, SIZE)
for block in blocks:
    libc.free(block)
kept = resident() - before
give_back_freed_memory()
print(round(kept / SIZE), round((resident() - before) / SIZE))
"""


def test_freed_memory_is_given_back_on_demand() -> None:
    run = subprocess.run([sys.executable, "-c", TRIM], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["2", "0"]
