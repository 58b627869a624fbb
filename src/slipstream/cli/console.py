"""Where the commands print: rich on a terminal, plain text in a pipe. Errors go to standard error."""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@cache
def out() -> Console:
    """Standard output. Lines are never wrapped in a pipe, so that they can be cut and pasted."""
    return _console(stderr=False)


@cache
def err() -> Console:
    """Standard error: errors, warnings and progress."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, soft_wrap=not stream.isatty(), emoji=False, markup=False)


def print_error(message: str) -> None:
    """`message` on standard error: red on a terminal, plain in a pipe. The first line is marked as an error."""
    err().print(f"error: {message}", style="bold red")
