"""Steps without the model: its last outputs carried on, which saves passes and costs quality. Off unless asked for.

Neighbouring steps see nearly the same picture, so that what the model would say can be guessed from what it said (the
observation of DeepCache, arXiv:2312.00858, and of TeaCache, arXiv:2411.19108; here of whole outputs, so that it serves
any model, and decided before the first step, so that a picture does not depend on those beside it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from slipstream.errors import RequestError


class Guess(NamedTuple):
    """What stands for the model's output in a step: `last` times its last one plus `before` times the one before."""

    last: float
    before: float


@dataclass(frozen=True)
class Reuse:
    """Run the model in each `every`-th step only, and in all of the first and the last ones.

    `first` and `last`: shares of the steps, where pictures change most. `line`: carry the output on along a line
    through the last two, over the schedule's times; else as it was.
    """

    every: int = 2
    first: float = 0.25
    last: float = 0.1
    line: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.every <= 10:
            raise RequestError(f"reuse must be of every 1 to 10 steps, got {self.every}", param="reuse")
        if not (0 <= self.first <= 1 and 0 <= self.last <= 1):
            raise RequestError("reuse needs shares of the steps from 0 to 1", param="reuse")

    def guesses(self, times: tuple[float, ...]) -> tuple[Guess | None, ...]:
        """For each step by its time what is taken in the model's place; None where the model runs, first of all."""
        steps = len(times)
        head, tail = max(1, round(self.first * steps)), steps - max(1, round(self.last * steps))
        found: list[Guess | None] = []
        run: list[float] = []  # times of the model's passes so far
        since = 0
        for i, time in enumerate(times):
            if i < head or i >= tail or since >= self.every - 1:
                found.append(None)
                run.append(time)
                since = 0
            else:
                found.append(self._guess(run, time))
                since += 1
        return tuple(found)

    def _guess(self, run: list[float], time: float) -> Guess:
        if not self.line or len(run) < 2 or run[-1] == run[-2]:
            return Guess(1.0, 0.0)
        ahead = (time - run[-1]) / (run[-1] - run[-2])
        return Guess(1 + ahead, -ahead)


class Quality(NamedTuple):
    """How far pictures are from those that a full computation makes, and how many passes of the model they took.

    `psnr`: in dB, of all pixels together; infinite where they are equal. `worst`: the largest difference of a pixel.
    """

    psnr: float
    worst: float
    passes: int
    full_passes: int


def quality(full: np.ndarray, other: np.ndarray, passes: int, full_passes: int) -> Quality:
    """Compare pictures [n, H, W, 3] in 0..1."""
    difference = np.abs(full.astype(np.float64) - other)
    error = float(np.mean(difference**2))
    psnr = float("inf") if error == 0 else -10 * float(np.log10(error))
    return Quality(psnr, float(difference.max(initial=0.0)), passes, full_passes)
