"""What a driver is told and what it answers: a JSON object a line, each way.

It first says `{"ready": {"versions": {...}}}`, after it has loaded the model and answered one short prompt. Then each
`{"prompts": [[id, ...], ...], "tokens": n}` is answered by `{"times": [[seconds, ...], ...]}`: for each prompt, when
each of its n tokens came, counted from the moment when all prompts were handed over together. A failure is answered by
`{"error": reason}`; one while loading ends the driver. What libraries print goes to standard error.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Prompts = list[list[int]]
Times = list[list[float]]
_WARM_TOKENS = 16
_PR_SET_PDEATHSIG = 1


class Participant(Protocol):
    """A loaded model."""

    versions: Mapping[str, str]

    def generate(self, prompts: Prompts, clock: Clock) -> None:
        """Continue all prompts at once by `clock.tokens` tokens each, greedily, whatever they are (no end of text).

        `clock.came(i)` is called whenever a token of prompt i has come.
        """


@dataclass
class Clock:
    """Notes when tokens come. `tokens`: how many each prompt gets."""

    tokens: int
    times: Times
    started: float

    @classmethod
    def start(cls, prompts: int, tokens: int) -> Clock:
        """A clock at zero."""
        return cls(tokens, [[] for _ in range(prompts)], time.perf_counter())

    def came(self, prompt: int, count: int = 1) -> None:
        """`count` tokens of `prompt` have come now."""
        self.times[prompt].extend([time.perf_counter() - self.started] * count)

    def checked(self) -> Times:
        """The times, if every prompt has all its tokens. Raises RuntimeError."""
        counts = {len(each) for each in self.times}
        if counts != {self.tokens}:
            raise RuntimeError(f"{self.tokens} tokens were asked for, {sorted(counts)} came")
        return self.times


def run(participant: Participant, prompts: Prompts, tokens: int) -> Times:
    """When each token of each prompt came, in seconds."""
    clock = Clock.start(len(prompts), tokens)
    participant.generate(prompts, clock)
    return clock.checked()


def serve(load: Callable[[dict[str, Any]], Participant], settings: dict[str, Any]) -> int:
    """Load the model, then answer commands until standard input ends. The exit status: 1 if it could not be loaded."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: Mapping[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        participant = load(settings)
        run(participant, [list(range(1000, 1000 + _WARM_TOKENS))], 2)
    except Exception as error:
        say({"error": reason(error)})
        return 1
    say({"ready": {"versions": dict(participant.versions)}})
    for line in sys.stdin:
        command = json.loads(line)
        try:
            say({"times": run(participant, command["prompts"], command["tokens"])})
        except Exception as error:
            say({"error": reason(error)})
    if os.getpgrp() == os.getpid():  # as it was started: the processes that libraries began go with it
        os.killpg(0, signal.SIGKILL)
    # Not by the interpreter's way out: some libraries wait there for threads that never end.
    os._exit(0)


def end_with_parent() -> None:
    """Has this process killed when its parent ends, even if it is stopped then. Linux only (prctl)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def reason(error: BaseException) -> str:
    """One line that names an error."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}" if text else type(error).__name__
