"""`slipstream bench step`: where the time of a step goes on a CPU, part by part, against what the machine could do.

The native handlers write down how long each call took (`trace.h`). What a step takes beyond their sum is XLA's own code
and the host's work that the device waits for.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from slipstream.api.engine import EngineRequest
from slipstream.api.sampling import TokenSampling
from slipstream.bench.ceilings import Ceilings, measure, native_library
from slipstream.bench.options import StepOptions
from slipstream.bench.report import describe_machine
from slipstream.checkpoint.progress import Progress, silent
from slipstream.engine.build import build
from slipstream.engine.config import EngineConfig
from slipstream.engine.loop import Engine
from slipstream.errors import ConfigError
from slipstream.kernels.native import library
from slipstream.spec.source import Checkpoint

SCHEMA = "slipstream.bench.step/1"
REST = "everything else"
_MOST_CALLS = 1 << 18
_NAMES = ("products", "feed-forward", "rows of a table", "attention", "sampling")


class Call(ctypes.Structure):
    """`Call` of trace.h."""

    _fields_ = (
        ("part", ctypes.c_int32),
        ("weights", ctypes.c_int32),
        ("inputs", ctypes.c_int64),
        ("out", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("bytes", ctypes.c_int64),
        ("operations", ctypes.c_int64),
        ("begin", ctypes.c_int64),
        ("nanoseconds", ctypes.c_int64),
    )

    @property
    def name(self) -> str:
        """What tells calls of one part of the model from others."""
        part = _NAMES[self.part]
        if part == "attention":
            return part
        what = f"{self.weights} products" if part == "products" and self.weights > 1 else part.removesuffix("s")
        return f"{what} {self.inputs} -> {self.out}" if part == "products" else what


@dataclass(frozen=True)
class Part:
    """One part of a step: how often it is called, its seconds in all, the bytes it reads, the operations it does."""

    name: str
    calls: float
    seconds: float
    bytes: float
    operations: float


@dataclass(frozen=True)
class Breakdown:
    """A step of `workload`: its seconds, and the parts that the native kernels did."""

    workload: str
    tokens: int
    seconds: float
    parts: tuple[Part, ...]

    @property
    def rest(self) -> float:
        """Seconds outside of the native kernels."""
        return self.seconds - sum(part.seconds for part in self.parts)


def run(
    checkpoint: Checkpoint, options: StepOptions, *, console: Console | None = None, progress: Progress = silent
) -> list[Breakdown]:
    """Measures, prints tables (lines with tabs in a pipe) and writes the JSON file; returns the breakdowns."""
    console = console or Console()
    if options.json is not None and not options.json.parent.is_dir():
        raise ConfigError(f"the folder of {options.json} does not exist: make it first, or choose another place")
    native_library()
    config = EngineConfig(kernels="cpu", cpu_precision=options.precision, prefix_caching=False)
    config = replace(config, max_seqs=max(config.max_seqs, *options.streams))
    config = replace(config, max_batched_tokens=max(config.max_batched_tokens, config.max_seqs, options.prompt))
    engine = build(checkpoint, config, progress)
    assert isinstance(engine, Engine), "one device has no replicas"
    ceilings = measure()
    found = [_decode(engine, streams, options) for streams in options.streams]
    if options.prompt:
        found.append(_prefill(engine, options))
    for breakdown in found:
        _print(breakdown, ceilings, console)
    _print_ceilings(ceilings, console)
    if options.json is not None:
        report = _report(checkpoint, options, ceilings, found)
        options.json.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return found


def _decode(engine: Engine, streams: int, options: StepOptions) -> Breakdown:
    """Steps that decode `streams` sequences, from the moment when all of them do."""
    _add(engine, streams, options.context, options.steps + 8)
    while engine.has_work and sum(len(output.token_ids) for output in engine.step()) < streams:
        pass
    with _traced() as calls:
        for _ in range(options.steps):
            engine.step()
        made = list(calls())
    _drain(engine)
    workload = f"decode, {streams} stream{'s' if streams > 1 else ''} at {options.context}"
    return _breakdown(workload, streams, _steps(made))


def _prefill(engine: Engine, options: StepOptions) -> Breakdown:
    """A whole prompt in one step."""
    steps = []
    for _ in range(max(5, options.steps // 8) + 1):
        _add(engine, 1, options.prompt, 1)
        with _traced() as calls:
            start = time.perf_counter()
            _drain(engine)
            steps.append((time.perf_counter() - start, list(calls())))
    return _breakdown(f"prefill of {options.prompt}", options.prompt, steps[1:])


def _steps(calls: Sequence[Call]) -> list[tuple[float, list[Call]]]:
    """Seconds and calls of each whole step, from one reading of the embedding to the next."""
    firsts = [i for i, call in enumerate(calls) if call.part == _NAMES.index("rows of a table")]
    if len(firsts) < 2:
        raise ConfigError("too few steps were seen: raise --steps")
    return [((calls[end].begin - calls[at].begin) / 1e9, list(calls[at:end])) for at, end in pairwise(firsts)]


def _breakdown(workload: str, tokens: int, steps: list[tuple[float, list[Call]]]) -> Breakdown:
    """The mean of the middle half of the steps by their time: few disturbances, and the parts add up to the whole."""
    quarter = len(steps) // 4
    middle = sorted(steps, key=lambda step: step[0])[quarter : len(steps) - quarter]
    seconds = statistics.fmean(step for step, _ in middle)
    return Breakdown(workload, tokens, seconds, _parts([call for _, calls in middle for call in calls], len(middle)))


def _parts(calls: Sequence[Call], steps: int) -> tuple[Part, ...]:
    """Means by name and step, the slowest first."""
    kinds: dict[str, list[Call]] = {}
    for call in calls:
        kinds.setdefault(call.name, []).append(call)
    parts = []
    for name, some in kinds.items():
        nanoseconds = sum(call.nanoseconds for call in some) / steps
        sums = [sum(getattr(call, field) for call in some) / steps for field in ("bytes", "operations")]
        parts.append(Part(name, len(some) / steps, nanoseconds / 1e9, *sums))
    return tuple(sorted(parts, key=lambda part: -part.seconds))


def _add(engine: Engine, count: int, prompt: int, tokens: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(count):
        ids = rng.integers(0, engine.info.vocab_size, prompt).tolist()
        sampling = TokenSampling(temperature=0.0, max_tokens=tokens)
        engine.add(EngineRequest(id=str(i), prompt_token_ids=ids, sampling=sampling))


def _drain(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


@contextmanager
def _traced() -> Iterator[Any]:
    """Writes down calls inside; gives a function that returns those so far."""
    native = native_library()
    native.slipstream_trace(1)
    try:
        yield _traced_calls
    finally:
        native.slipstream_trace(0)


def _traced_calls() -> Iterator[Call]:
    native = native_library()
    native.slipstream_traced.restype = ctypes.c_int64
    buffer = (Call * _MOST_CALLS)()
    count = native.slipstream_traced(buffer, ctypes.c_int64(_MOST_CALLS))
    return (buffer[i] for i in range(min(count, _MOST_CALLS)))


COLUMNS = ("part", "calls", "ms", "share", "GB/s", "of read", "GOP/s", "of peak")


def _cells(part: Part, step: float, ceilings: Ceilings) -> tuple[str, ...]:
    read, done = (amount / part.seconds if part.seconds else 0.0 for amount in (part.bytes, part.operations))
    peak = ceilings.floats if part.name == "attention" else ceilings.integers
    return (
        part.name,
        f"{part.calls:.0f}",
        f"{part.seconds * 1e3:.3f}",
        f"{part.seconds / step:.1%}",
        f"{read / 1e9:.1f}",
        f"{read / ceilings.read:.0%}",
        f"{done / 1e9:.0f}",
        f"{done / peak:.0%}",
    )


def _print(breakdown: Breakdown, ceilings: Ceilings, console: Console) -> None:
    step = breakdown.seconds
    rows = [_cells(part, step, ceilings) for part in breakdown.parts]
    rows.append((REST, "", f"{breakdown.rest * 1e3:.3f}", f"{breakdown.rest / step:.1%}", "", "", "", ""))
    weights = sum(part.bytes for part in breakdown.parts)
    total = (
        "step",
        "",
        f"{step * 1e3:.3f}",
        "100.0%",
        f"{weights / step / 1e9:.1f}",
        f"{weights / step / ceilings.read:.0%}",
    )
    rows.append((*total, "", ""))
    title = f"{breakdown.workload}: {breakdown.tokens / step:,.1f} tokens/s"
    if not console.is_terminal:
        console.file.write("\n".join([title, "\t".join(COLUMNS), *("\t".join(cells) for cells in rows)]) + "\n\n")
        return
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), title=title, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "part" else "right")
    for cells in rows:
        table.add_row(*cells, style="bold" if cells[0] == "step" else None)
    console.print(table)
    console.print()


def _print_ceilings(ceilings: Ceilings, console: Console) -> None:
    line = (
        f"This machine, measured now ({library.description()}): reads {ceilings.read / 1e9:.1f} GB/s, multiplies "
        f"{ceilings.integers / 1e9:.0f} GOP/s of bytes and {ceilings.floats / 1e9:.0f} GFLOP/s of float32. Operations "
        "are the model's: exact products multiply each twice."
    )
    console.print(line, highlight=False) if console.is_terminal else console.file.write(line + "\n")


def _report(
    checkpoint: Checkpoint, options: StepOptions, ceilings: Ceilings, found: Sequence[Breakdown]
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(sys.argv),
        "machine": describe_machine(),
        "native": library.description(),
        "model": checkpoint.path.name,
        "precision": options.precision,
        "ceilings": asdict(ceilings),
        "steps": [{**asdict(one), "rest": one.rest} for one in found],
    }
