"""What is going on, while a comparison runs: a bar on a terminal, a line a round in a pipe."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class Bar:
    """Counts rounds, of all models together, and names what is being done."""

    def __init__(self, console: Console, rounds: int) -> None:
        self._console = console
        self._total = rounds
        self._done = 0
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("round"),
            MofNCompleteColumn(),
            BarColumn(20),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
            # Drawn seldom: it shares the CPUs with what it reports on.
            refresh_per_second=1,
        )
        self._task = self._progress.add_task("", total=rounds)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def round(self, about: str, number: int) -> None:
        """Round `number` (from 0) of a model begins."""
        self._progress.update(self._task, completed=self._done)
        self._done += 1
        if not self._console.is_terminal:
            self._console.print(f"round {self._done} of {self._total}: {about}, round {number + 1}")

    def doing(self, what: str) -> None:
        """What is being done now."""
        self._progress.update(self._task, description=what)

    def progress(self, stage: str, done: int, total: int | None) -> None:
        """A `Progress` of downloads and installations."""
        share = f" {done / total:.0%}" if total else ""
        self.doing(stage + share)
