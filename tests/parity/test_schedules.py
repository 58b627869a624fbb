"""Every sampler's table and steps against diffusers', to float32's rounding."""

from __future__ import annotations

import numpy as np
import pytest

from tests.diffusion.samplers import CASES, drawn, way
from tests.parity.schedules import followed

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on NumPy 2

ROUNDING = 2e-6  # of a table's numbers; 1.2e-7 is one unit of float32
STEPS = 2e-5  # of x, whose roundings add up over the steps


def close(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> bool:
    """Whether two arrays differ by no more than a share of the largest number."""
    return float(np.abs(ours - theirs).max()) <= tolerance * max(1.0, float(np.abs(theirs).max()))


@pytest.mark.parametrize("name", CASES)
def test_tables_and_steps(name: str) -> None:
    case, theirs = CASES[name], followed(name, CASES[name])
    table = case.schedule()
    np.testing.assert_allclose([row.time for row in table.rows], theirs.times, rtol=ROUNDING, atol=1e-4)
    if theirs.sigmas is not None:
        np.testing.assert_allclose(table.sigmas, theirs.sigmas, rtol=ROUNDING, atol=1e-7)
    assert table.pure == pytest.approx(theirs.pure, rel=ROUNDING)
    outs, fresh = drawn(name + "out", table.steps), drawn(name + "fresh", table.steps)
    noise, picture = drawn(name + "start", 2)
    assert close(np.float32(table.picture) * picture + np.float32(table.noise) * noise, theirs.start, ROUNDING)
    ours = way(table, noise * np.float32(table.pure), outs, fresh)
    for i, (row, seen, then) in enumerate(zip(table.rows, theirs.inputs, theirs.way, strict=True)):
        before = ours[i - 1] if i else noise * np.float32(table.pure)
        assert close(np.float32(row.in_scale) * before, seen, STEPS), i
        assert close(ours[i], then, STEPS), i
    for row, level in zip(table.rows, theirs.levels, strict=False):
        assert close(np.float32(row.picture) * picture + np.float32(row.noise) * noise, level, ROUNDING)
    assert table.rows[-1][-2:] == (1.0, 0.0)
