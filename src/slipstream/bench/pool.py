"""`slipstream bench pool`: what the native kernels' threads gain, alone on the machine and beside a busy neighbour.

The work is that of one decode step of a small model: the products of 30 layers and the head for one row, about 150
regions that run in parallel one after another. A neighbour is a process that does nothing but count. The settings are
measured in turns, so that whatever else the machine does falls on all of them alike.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from slipstream.bench.options import PoolOptions
from slipstream.errors import ConfigError
from slipstream.kernels.native.library import library, reason
from slipstream.kernels.native.pack import PACKINGS, packed_bytes

LAYERS, WIDTH, HIDDEN, HEADS, VOCABULARY = 30, 576, 1536, 960, 49152
_COUNT = "import os, sys\nif sys.argv[1:]: os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"


@dataclass(frozen=True)
class Setting:
    """So many threads, beside a neighbour or not; `pinned` is the neighbour's processor, None for any."""

    threads: int
    neighbour: bool = False
    pinned: int | None = None

    def __str__(self) -> str:
        """As it is printed."""
        threads = f"{self.threads} thread" + "s" * (self.threads > 1)
        if not self.neighbour:
            return threads
        return f"{threads}, neighbour on " + ("any processor" if self.pinned is None else f"processor {self.pinned}")


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a step in one setting: the median over all rounds, and the slowest tenth."""

    setting: Setting
    median: float
    late: float


def run(options: PoolOptions, *, console: Console) -> list[Timing]:
    """Measure every setting, print a table, and return its rows, one thread alone first. Raises ConfigError."""
    native = library()
    if native is None:
        raise ConfigError(str(reason()))
    before = native.slipstream_threads()
    most = options.threads or native.slipstream_available_processors()
    settings = [Setting(1), Setting(most), Setting(1, True), Setting(most, True)]
    settings += [Setting(most, True, processor) for processor in sorted(os.sched_getaffinity(0))[:2]]
    steps: dict[Setting, list[float]] = {setting: [] for setting in settings}
    medians: dict[Setting, list[float]] = {setting: [] for setting in settings}
    step = decode_step(native)
    try:
        empty = {chunks: _nanoseconds_a_region(native, most, chunks) for chunks in (most, 8 * most)}
        for _ in range(options.rounds):
            for setting in settings:
                native.slipstream_set_threads(setting.threads)
                with _neighbour(setting):
                    taken = _timed(step, options.seconds)
                steps[setting] += taken
                medians[setting].append(statistics.fmean(taken))
    finally:
        native.slipstream_set_threads(before)
    rows = [Timing(s, statistics.median(medians[s]) * 1e3, float(np.percentile(steps[s], 90)) * 1e3) for s in settings]
    table = Table("setting", "mean step, ms", "slowest tenth, ms", "speed (one thread alone: 1)")
    for row in rows:
        table.add_row(str(row.setting), f"{row.median:.2f}", f"{row.late:.2f}", f"{rows[0].median / row.median:.2f}")
    console.print(table)
    for chunks, time_taken in empty.items():
        console.print(f"An empty region of {chunks} chunks on {most} threads: {time_taken:.0f} ns")
    return rows


def decode_step(native: ctypes.CDLL) -> Callable[[], None]:
    """A function that does the products of one step. Its weights are random bits: values do not matter to the time."""
    rng = np.random.default_rng(0)
    size, zero, keep = ctypes.c_int64, ctypes.c_float(0), []

    def pointer(array: NDArray[Any]) -> ctypes.c_void_p:
        keep.append(array)
        return ctypes.c_void_p(array.ctypes.data)

    x, y = pointer(np.ones((1, HIDDEN), np.float32)), pointer(np.empty((1, VOCABULARY), np.float32))

    def weight(kind: str, out: int, inputs: int) -> ctypes.c_void_p:
        return pointer(rng.integers(0, 64, packed_bytes(kind, out, inputs), np.uint8))

    def product(kind: str, out: int, inputs: int) -> tuple[Any, ...]:
        shape = (PACKINGS[kind].code, size(out), size(inputs))
        return (*shape, weight(kind, out, inputs), x, size(1), 1, None, zero, zero, None, y)

    def gated(kind: str, out: int, inputs: int) -> tuple[Any, ...]:
        codes = (PACKINGS[kind].code, PACKINGS[kind].code, size(out), size(inputs))
        pair = (weight(kind, out, inputs), weight(kind, out, inputs))
        return (*codes, *pair, x, size(1), 1, None, zero, zero, 0, y)

    calls: list[tuple[Any, tuple[Any, ...]]] = []
    for _ in range(LAYERS):
        calls += [
            (native.slipstream_gemm, product("q4_1", HEADS, WIDTH)),
            (native.slipstream_gemm, product("q4_1", WIDTH, WIDTH)),
            (native.slipstream_gated, gated("q4_1", HIDDEN, WIDTH)),
            (native.slipstream_gemm, product("q4_1", WIDTH, HIDDEN)),
        ]
    calls.append((native.slipstream_gemm, product("q8_0", VOCABULARY, WIDTH)))

    def step() -> None:
        assert keep  # the arrays live as long as this function does
        for function, arguments in calls:
            function(*arguments)

    return step


@contextlib.contextmanager
def _neighbour(setting: Setting) -> Iterator[None]:
    if not setting.neighbour:
        yield
        return
    pinned = [] if setting.pinned is None else [str(setting.pinned)]
    process = subprocess.Popen([sys.executable, "-S", "-c", _COUNT, *pinned])
    try:
        time.sleep(0.1)  # until it counts
        yield
    finally:
        process.kill()
        process.wait()


def _timed(step: Callable[[], None], seconds: float) -> list[float]:
    """Seconds of each step, of as many as fit into `seconds`; a tenth of that goes before, unmeasured."""
    taken: list[float] = []
    start = time.perf_counter()
    begin = start + seconds / 10
    while not taken or start < begin + seconds:
        before = start
        step()
        start = time.perf_counter()
        if before >= begin:
            taken.append(start - before)
    return taken


def _nanoseconds_a_region(native: ctypes.CDLL, threads: int, chunks: int) -> float:
    """The cost of a region in which nothing is done, the median of several series: ctypes' own cost is taken off."""
    counts = np.zeros(chunks, np.uint32)
    call, repeats = native.slipstream_parallel_count, 2000

    def series(chunks: int) -> float:
        arguments = (ctypes.c_int64(chunks), ctypes.c_int64(0), ctypes.c_void_p(counts.ctypes.data))
        start = time.perf_counter()
        for _ in range(repeats):
            call(*arguments)
        return (time.perf_counter() - start) / repeats * 1e9

    native.slipstream_set_threads(threads)
    return statistics.median(series(chunks) - series(0) for _ in range(9))
