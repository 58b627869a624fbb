"""How long work reports itself: one call, so that a bar, a log line and a message to another process all fit."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called from the thread that does the work, some ten times a second or once a few megabytes; it must not block.

    A plain function with these parameters is a `Progress`.
    """

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """`stage` is a short phrase ("download smollm2-135m"); `done` and `total` share a unit.

        The unit is bytes for stages that start with "download", "check" or "write", and weights (numbers) for "load".
        `total` is None while it is not known. The last call of a stage has `done == total`.
        """


def silent(stage: str, done: int, total: int | None) -> None:
    """The `Progress` that shows nothing."""
