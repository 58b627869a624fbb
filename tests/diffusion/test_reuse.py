"""Steps that are guessed: which ones, what from, and what they cost."""

from __future__ import annotations

import numpy as np
import pytest

from slipstream.diffusion.reuse import Guess, Quality, Reuse, quality
from slipstream.diffusion.reuse_report import report
from slipstream.errors import RequestError
from tests.diffusion.fakes import EMBEDDED, engine, request


def test_which_steps_are_guessed() -> None:
    times = tuple(range(12, 0, -1))
    guesses = Reuse(every=3, first=0.25, last=0.2, line=False).guesses(times)
    assert [one is None for one in guesses] == [True] * 3 + [False, False, True] * 2 + [False] + [True] * 2
    assert guesses[3] == Guess(1.0, 0.0)
    assert Reuse(every=1).guesses(times) == (None,) * 12
    assert all(one is None for one in Reuse().guesses((1.0,)))


def test_a_line_goes_through_the_last_two() -> None:
    """Outputs that change evenly with time are guessed exactly."""
    times = (10.0, 9.0, 7.0, 6.5, 5.0, 4.0, 1.0)
    said = [3 * time + 1 for time in times]
    run: list[float] = []
    for time, value, guess in zip(times, said, Reuse(every=2, first=0.3, last=0.1).guesses(times), strict=True):
        if guess is None:
            run.append(value)
        else:
            assert guess.last * run[-1] + guess.before * run[-2] == pytest.approx(3 * time + 1)


def test_what_reuse_costs() -> None:
    reuses = [Reuse(every=every) for every in (1, 2, 4)]
    requests = [request(str(seed), prompt, steps=20, seed=seed) for seed, prompt in enumerate(("a cat", "a dog"))]
    found = report(engine(EMBEDDED), requests, reuses)
    none, half, most = (found[reuse] for reuse in reuses)
    assert none == Quality(float("inf"), 0.0, 40, 40)
    assert (half.passes, most.passes) == (26, 20)
    assert half.psnr > most.psnr > 20
    assert half.worst < most.worst
    with pytest.raises(ValueError, match="seed"):
        report(engine(EMBEDDED), [request("one", seed=None)], reuses)


@pytest.mark.parametrize("fields", [{"every": 0}, {"every": 11}, {"first": -0.1}, {"last": 1.5}])
def test_refused(fields: dict[str, float]) -> None:
    with pytest.raises(RequestError):
        Reuse(**fields)  # type: ignore[arg-type]


def test_equal_pictures() -> None:
    same = np.zeros((1, 2, 2, 3), np.float32)
    assert quality(same, same, 1, 2) == (float("inf"), 0.0, 1, 2)
    assert quality(same, same + 0.1, 1, 2).psnr == pytest.approx(20, abs=1e-4)
