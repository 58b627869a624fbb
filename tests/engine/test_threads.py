"""The setting `cpu_threads` reaches the native kernels' pool, and XLA's own, which a process makes but once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from slipstream.engine.config import EngineConfig
from slipstream.errors import ConfigError
from slipstream.kernels.native import library

PROGRAM = """
import os, sys
from pathlib import Path
from slipstream.kernels.native.library import library
from tests.engine import tiny

engine = tiny.engine(max_seqs=1, max_batched_tokens=8, cpu_threads=int(sys.argv[1]))
tiny.run(engine, [tiny.request("a", [1, 2, 3], max_tokens=2)])
names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
print(library().slipstream_threads() if library() else "none", sum(name == "tf_XLAEigen" for name in names))
"""


@pytest.mark.parametrize("threads", [1, 3])
def test_both_pools_have_as_many_threads_as_asked_for(threads: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(threads)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    native, xla = done.stdout.split()
    assert native == ("none" if library.reason() else str(threads))
    assert int(xla) == threads


def test_none_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="cpu_threads must be at least 1"):
        EngineConfig(cpu_threads=0)
