"""`slipstream bench pool`: every setting is measured, and nothing of it stays behind."""

from __future__ import annotations

import io
import os

import pytest
from rich.console import Console

from slipstream.bench.options import PoolOptions
from slipstream.bench.pool import Setting, run
from slipstream.errors import ConfigError
from slipstream.kernels.native.library import library


@pytest.mark.skipif(library() is None, reason="the native kernels were not built")
def test_every_setting_is_measured_and_the_thread_count_comes_back() -> None:
    native = library()
    assert native is not None
    before, processors = native.slipstream_threads(), os.sched_getaffinity(0)
    printed = io.StringIO()
    rows = run(PoolOptions(threads=2, rounds=1, seconds=0.01), console=Console(file=printed, width=150))
    assert [row.setting for row in rows[:4]] == [Setting(1), Setting(2), Setting(1, True), Setting(2, True)]
    assert all(row.median > 0 for row in rows)
    assert "2 threads, neighbour on any processor" in printed.getvalue()
    assert (native.slipstream_threads(), os.sched_getaffinity(0)) == (before, processors)


def test_settings_that_cannot_work_are_refused() -> None:
    for wrong in ({"threads": 0}, {"rounds": 0}, {"seconds": 0.0}):
        with pytest.raises(ConfigError, match=r"at least 1|over 0"):
            PoolOptions(**wrong)  # type: ignore[arg-type]
