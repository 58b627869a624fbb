"""A participant's process: started, asked, stopped in its tracks while others are measured, and ended."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

ANSWER_TIMEOUT = 600.0
"""Seconds after which a participant that says nothing is given up."""

_GRACE = 5.0
_READ = 1 << 16


class Dead(Exception):
    """The participant ended, or was ended since it did not answer; the message says how."""


class Failed(Exception):
    """The participant answered with an error; it lives."""


class Process:
    """One driver with its children. Start it in a `with` block: all are ended on the way out.

    Memory and signals reach every process under the driver, whatever group it made for itself.
    """

    def __init__(
        self, command: Sequence[str | Path], variables: Mapping[str, str], log: Path, timeout: float = ANSWER_TIMEOUT
    ) -> None:
        """Start `command` now; what it writes to standard error goes to `log`."""
        self._log = log
        self._timeout = timeout
        self._rest = b""
        self._started = time.perf_counter()
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | dict(variables),
                start_new_session=True,
            )
        self.versions: dict[str, str] = {}

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def ready(self) -> float:
        """Wait until it can take prompts; seconds since the start. Raises Dead or Failed."""
        answer = self._answer()
        self.versions = dict(answer["ready"]["versions"])
        return time.perf_counter() - self._started

    def generate(self, prompts: list[list[int]], tokens: int) -> list[list[float]]:
        """When each of `tokens` tokens of each prompt came, in seconds. Raises Dead or Failed."""
        assert self._process.stdin is not None
        command = json.dumps({"prompts": prompts, "tokens": tokens}) + "\n"
        try:
            self._process.stdin.write(command.encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._dead() from None
        times: list[list[float]] = self._answer()["times"]
        return times

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + self._timeout
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                self.end()
                raise Dead(f"no answer within {self._timeout:g} s")
            read = os.read(descriptor, _READ)
            if not read:
                raise self._dead()
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def _dead(self) -> Dead:
        try:
            status = self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self.end()
            return Dead("it closed its output")
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        last = last_line(self._log.read_text(encoding="utf-8", errors="replace"))
        return Dead(f"it ended with {how}{': ' * bool(last)}{last}")

    def pause(self) -> None:
        """Stop it in its tracks: it keeps its memory, and takes no time."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def peak_memory(self) -> float:
        """MiB of memory that the processes had at most, each counted by itself."""
        return sum(_peak(pid) for pid in self._tree()) / 1024

    def end(self) -> None:
        """End it and all under it, if they are still there. May be called again."""
        if self._process.poll() is None:
            tree = self._tree()  # now: children of a driver that has ended are nobody's
            self.resume()
            assert self._process.stdin is not None
            with suppress(OSError):
                self._process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE)
            for pid in tree:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._tree():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _tree(self) -> list[int]:
        """The driver and every process under it, parents first; empty when it has ended."""
        if self._process.poll() is not None:
            return []
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError, IndexError, ValueError):
                    # The second field is a name in brackets, which may hold anything.
                    parent = int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
                    children.setdefault(parent, []).append(int(entry.name))
        tree = [self._process.pid]
        for pid in tree:
            tree += children.get(pid, ())
        return tree


def last_line(text: str) -> str:
    """The last line that says something, cut to a length that fits a report."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _peak(pid: int) -> int:
    """KiB of resident memory that process `pid` had at most; 0 if it has gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0
