"""Progress in a pipe and on a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from slipstream.cli import progress
from slipstream.cli.progress import StageBars


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    text = io.StringIO()
    monkeypatch.setattr(progress, "err", lambda: Console(file=text, soft_wrap=True))
    yield text


def test_a_pipe_gets_a_line_when_a_stage_ends(pipe: io.StringIO) -> None:
    times = iter([0.0, 1.0, 3.0, 4.0])
    with StageBars(times.__next__) as bars:
        bars("download m", 0, None)
        bars("download m", 2 << 20, 4 << 20)
        bars("download m", 4 << 20, 4 << 20)
        bars("load", 7, 7)
    assert pipe.getvalue().splitlines() == ["download m: 4 MiB in 3.0 s", "load: 7 in 0.0 s"]


def test_a_long_stage_says_how_far_it_is(pipe: io.StringIO) -> None:
    with StageBars(iter(float(second) for second in range(40)).__next__) as bars:
        for shape in range(9):
            bars("compile", shape, 9)
        bars("compile", 9, 9)
    lines = pipe.getvalue().splitlines()
    assert lines[-1].startswith("compile: 9 in ")
    assert 1 <= len(lines) - 1 <= 4
    assert all(line.startswith("compile: ") and line.endswith(" of 9 ...") for line in lines[:-1])


def test_a_stage_that_ended_is_not_said_twice(pipe: io.StringIO) -> None:
    with StageBars() as bars:
        bars("load", 5, 5)
        bars("load", 5, 5)
    bars("load again", 5, 5)
    assert len(pipe.getvalue().splitlines()) == 1


def test_a_terminal_gets_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(progress, "err", lambda: Console(file=text, force_terminal=True, width=100))
    with StageBars() as bars:
        bars("download m", 0, None)
        bars("download m", 1 << 20, 2 << 20)
        bars("compile", 3, 8)
    shown = text.getvalue()
    assert "download m" in shown
    assert "1 MiB of 2 MiB" in shown
    assert "3 of 8" in shown
