"""Schedules: recorded tables of diffusers, what must hold of any table, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from slipstream.diffusion.schedule import samplers, schedule
from slipstream.diffusion.scheduler_config import Diffusion, Flow, read
from slipstream.errors import CheckpointError, RequestError, UnknownConfigKeys, UnsupportedModel
from tests.diffusion.samplers import CASES, FLUX_DEV, FLUX_SCHNELL, SDXL, drawn, way

GOLDEN = np.load(Path(__file__).parents[1] / "golden/models/schedules.npz")


@pytest.mark.parametrize("name", CASES)
def test_recorded(name: str) -> None:
    """Times and sigmas, and the end of a picture's way, as diffusers has them: tests/golden/make_schedules.py."""
    table = CASES[name].schedule()
    np.testing.assert_allclose([row.time for row in table.rows], GOLDEN[f"{name}/times"], rtol=2e-6, atol=1e-4)
    if f"{name}/sigmas" in GOLDEN:
        np.testing.assert_allclose(table.sigmas, GOLDEN[f"{name}/sigmas"], rtol=2e-6, atol=1e-7)
    outs, fresh = drawn(name + "out", table.steps), drawn(name + "fresh", table.steps)
    start = drawn(name + "start", 2)[0] * np.float32(table.pure)
    end = way(table, start, outs, fresh)[-1]
    expected = GOLDEN[f"{name}/end"]
    assert np.abs(end - expected).max() < 2e-5 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("lcm")])
def test_a_perfect_model_ends_at_its_picture(name: str) -> None:
    """A model that sees the same picture in everything leads there, whatever the sampler, but for what it leaves."""
    case = CASES[name]
    table = case.schedule()
    picture = drawn(name, 1)[0].astype(np.float64)
    x = drawn(name, 2)[1] * table.pure
    before = np.zeros_like(x)
    noise = drawn(name + "fresh", table.steps)
    for row, fresh in zip(table.rows, noise, strict=True):
        x, before = row.a * x + row.b * picture + row.c * before + row.fresh * fresh, picture
    left = abs(1 - (x / picture).mean()) if "sigma-min" in name else np.abs(x - picture).max()
    assert left < (0.2 if "sigma-min" in name or name.startswith("ddim") else 1e-5)


def test_published_configs() -> None:
    sdxl = read(SDXL)
    assert isinstance(sdxl, Diffusion)
    assert (sdxl.sampler, sdxl.spacing, sdxl.offset, sdxl.scaled, sdxl.alpha_one) == (
        "euler",
        "leading",
        1,
        True,
        False,
    )
    assert "lightning" in samplers(sdxl)
    dev, schnell = read(FLUX_DEV), read(FLUX_SCHNELL)
    assert isinstance(dev, Flow) and dev.dynamic and isinstance(schnell, Flow) and schnell.shift == 1
    assert samplers(dev) == ("flow",)
    assert schedule(schnell, 4, tokens=4096).sigmas == (1.0, 0.75, 0.5, 0.25, 0.0)


def test_dynamic_shift_follows_the_size() -> None:
    small, large = (schedule(read(FLUX_DEV), 4, tokens=tokens).sigmas[1] for tokens in (256, 4096))
    assert small == pytest.approx(np.exp(0.5) / (np.exp(0.5) + 1 / 3))
    assert large == pytest.approx(np.exp(1.15) / (np.exp(1.15) + 1 / 3))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"_class_name": "PNDMScheduler"}, UnsupportedModel, "PNDMScheduler"),
        ({"prediction_type": "flow_prediction"}, UnsupportedModel, "prediction_type"),
        ({"beta_schedule": "squaredcos_cap_v2"}, UnsupportedModel, "beta_schedule"),
        ({"use_beta_sigmas": True}, UnsupportedModel, "use_beta_sigmas"),
        ({"timestep_type": "continuous"}, UnsupportedModel, "timestep_type"),
        ({"trained_betas": [0.1, 0.2]}, UnknownConfigKeys, "trained_betas"),
        ({"new_switch": 1}, UnknownConfigKeys, "new_switch"),
        ({"beta_start": 0.5, "beta_end": 0.1}, CheckpointError, "scheduler_config.json"),
        ({"num_train_timesteps": "many"}, CheckpointError, "scheduler_config.json: num_train_timesteps"),
        ({"_class_name": "DDIMScheduler", "clip_sample": True}, UnsupportedModel, "clip_sample"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, UnsupportedModel, "solver_order"),
        ({"_class_name": "DPMSolverMultistepScheduler", "thresholding": True}, UnsupportedModel, "thresholding"),
        ({"rescale_betas_zero_snr": True}, UnsupportedModel, "rescale_betas_zero_snr"),
    ],
)
def test_what_is_not_computed_is_an_error(changes: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        read({**SDXL, **changes})


def test_flows_that_are_not_computed() -> None:
    with pytest.raises(UnsupportedModel, match="invert_sigmas"):
        read({**FLUX_DEV, "invert_sigmas": True})
    with pytest.raises(CheckpointError, match="max_image_seq_len"):
        read({**FLUX_DEV, "max_image_seq_len": 256})


@pytest.mark.parametrize(
    ("steps", "sampler", "words"),
    [
        (0, None, "from 1 to 1000"),
        (1001, None, "from 1 to 1000"),
        (51, "lcm", "at most 50"),
        (1000, "dpmpp_2m", "do not fit"),
        (4, "heun", "dpmpp_2m_karras"),
        (4, "flow", "not one of"),
    ],
)
def test_requests_that_no_table_serves(steps: int, sampler: str | None, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        schedule(read(SDXL), steps, tokens=0, sampler=sampler)


@pytest.mark.parametrize("sampler", samplers(Diffusion("euler")))
def test_tables_of_all_sizes_are_finite(sampler: str) -> None:
    for steps in (1, 2, 3, 14, 15, 49, 50):
        for begin in {0, steps // 2}:
            table = schedule(read(SDXL), steps, tokens=0, sampler=sampler, begin=begin)
            assert np.isfinite(np.array(table.rows)).all()
            assert table.steps == steps - begin
