"""The setting `cpu_threads` reaches the pool that computes: the native kernels' or XLA's, which is made once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from slipstream.engine.config import EngineConfig
from slipstream.errors import ConfigError
from slipstream.kernels.native import library

PROGRAM = """
import os, sys
from pathlib import Path
from slipstream.kernels.native.library import library
from tests.engine import tiny

engine = tiny.engine(max_seqs=1, max_batched_tokens=8, cpu_threads=int(sys.argv[1]), kernels=sys.argv[2])
tiny.run(engine, [tiny.request("a", [1, 2, 3], max_tokens=2)])
names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
print(library().slipstream_threads() if library() else "none", sum(name == "tf_XLAEigen" for name in names))
"""


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_the_pool_that_computes_has_as_many_threads_as_asked_for(kernels: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "3", kernels],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={name: value for name, value in os.environ.items() if name != library.XLA_THREADS_VARIABLE},
    )
    native, xla = done.stdout.split()
    assert native == ("none" if library.reason() else "3")
    assert int(xla) == (1 if kernels == "auto" and not library.reason() else 3)


def test_xla_keeps_its_threads_where_it_may_compile_for_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """They compile in parallel: one thread would make a start of minutes of it."""

    own = library.library()
    cpus = None if own is None else str(own.slipstream_available_processors())
    platforms = jax.config.values["jax_platforms"]
    try:
        for said, files, threads in (
            ("cpu", ("null",), own and "1"),
            ("cuda,cpu", (), cpus),
            ("", ("null",), cpus),
            ("", ("none",), own and "1"),
        ):
            jax.config.update("jax_platforms", said)
            monkeypatch.setattr(library, "ACCELERATOR_FILES", files)
            monkeypatch.delenv(library.XLA_THREADS_VARIABLE, raising=False)
            library.use_threads(None)
            assert os.environ.get(library.XLA_THREADS_VARIABLE) == threads, (said, files)
    finally:
        jax.config.update("jax_platforms", platforms)


def test_none_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="cpu_threads must be at least 1"):
        EngineConfig(cpu_threads=0)
