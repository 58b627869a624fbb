"""Progress of long work: bars on a terminal, lines in a pipe. Always on standard error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING

from slipstream.cli.console import err
from slipstream.cli.sizes import format_bytes

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_IN_BYTES = ("download", "check", "write")
"""First words of the stages that count bytes; others count things."""

LINE_SECONDS = 5.0
"""In a pipe: a stage that takes longer says how far it is, with at least this distance between lines."""


class StageBars(AbstractContextManager["StageBars"]):
    """Shows stages as they are reported. Call it with (stage, done, total), from any thread, while it is entered.

    `done` and `total` share a unit: bytes for stages that start with "download", "check" or "write". `total` None: it
    is not known.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self._clock = clock
        self._next_line: dict[str, float] = {}
        self._lock = threading.Lock()
        self._begun: dict[str, float] = {}
        self._ended: set[str] = set()
        self._tasks: dict[str, TaskID] = {}
        self._bars = _bars() if err().is_terminal else None
        self._shown = False

    def __enter__(self) -> StageBars:
        """Start showing."""
        self._shown = True
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Stop showing; finished bars stay on the screen. Later reports (of a restarted worker) are not shown."""
        self._shown = False
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Report that `stage` has done `done` of `total`."""
        with self._lock:
            if not self._shown:
                return
            now = self._clock()
            begun = self._begun.setdefault(stage, now)
            ended = total is not None and done >= total
            if self._bars is not None:
                self._advance(self._bars, stage, done, total)
            elif stage not in self._ended:
                self._print_line(stage, done, total, ended=ended, seconds=now - begun)
            if ended:
                self._ended.add(stage)

    def _print_line(self, stage: str, done: int, total: int | None, *, ended: bool, seconds: float) -> None:
        if ended:
            err().print(f"{stage}: {_amount(stage, done)} in {seconds:.1f} s")
        elif seconds >= self._next_line.get(stage, LINE_SECONDS):
            self._next_line[stage] = seconds + LINE_SECONDS
            err().print(f"{stage}: {_amount(stage, done, total)} ...")

    def _advance(self, bars: Progress, stage: str, done: int, total: int | None) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = bars.add_task(stage, total=total, amount="")
        bars.update(self._tasks[stage], completed=done, total=total, amount=_amount(stage, done, total))


def _bars() -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=32),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[amount]}", style="dim"),
        TimeElapsedColumn(),
        console=err(),
    )


def _amount(stage: str, done: int, total: int | None = None) -> str:
    show = format_bytes if stage.startswith(_IN_BYTES) else "{:,}".format
    return show(done) if total is None else f"{show(done)} of {show(total)}"
