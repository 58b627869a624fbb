"""The progress bar, on a terminal only."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from slipstream.bench.rows import Row


class Bar:
    """Counts requests as they finish, with output tokens per second and errors so far. Silent in a pipe."""

    def __init__(self, console: Console, *, warm: int, load: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._warm = self._progress.add_task("warm-up", total=warm, note="", visible=warm > 0)
        self._load = self._progress.add_task("load", total=load, note="", start=False)
        self._tokens = self._errors = 0

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def warmed(self) -> None:
        """One warm-up request is done."""
        self._progress.advance(self._warm)

    def finished(self, row: Row) -> None:
        """One request of the load is done."""
        self._progress.start_task(self._load)
        self._tokens += row.tokens
        self._errors += row.failure is not None
        rate = self._tokens / row.ended if row.ended > 0 else 0.0
        errors = f", {self._errors} failed" if self._errors else ""
        self._progress.update(self._load, advance=1, note=f"{rate:,.0f} tok/s{errors}")
