"""Samplers as tables: a row of numbers for each step, so that pictures with different samplers share a compiled step.

What a step computes, with the row's numbers and the model f:

    out      = f(in_scale * x, time)
    denoised = keep * x + gain * out                 the picture that the model sees in x
    x        = a * x + b * denoised + c * denoised of the step before + fresh * new noise

What a model predicts (noise, velocity, a flow) is in `keep` and `gain`; the sampler is in `a`, `b`, `c`, `fresh`.
Plain numpy, computed in float64 from levels rounded as `noise_levels` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np

from slipstream.diffusion import noise_levels as levels
from slipstream.diffusion.scheduler_config import Diffusion, Flow, SchedulerConfig
from slipstream.errors import RequestError


class Row(NamedTuple):
    """One step. `time` is diffusers' timestep. `picture` and `noise` are the amounts of both in x after the step.

    Inpainting puts a known picture beside what was made of noise with these amounts; after the last step they are 1, 0.
    """

    time: float
    in_scale: float
    keep: float
    gain: float
    a: float
    b: float
    c: float
    fresh: float
    picture: float
    noise: float


@dataclass(frozen=True)
class Schedule:
    """The steps of one picture. `pure`: x at the start is so many times unit noise.

    From another picture, x is `picture` times it plus `noise` times unit noise. `sigmas`: the noise over the signal (a
    flow's: the share of noise) at the steps' starts and after the last.
    """

    rows: tuple[Row, ...]
    pure: float
    picture: float
    noise: float
    sigmas: tuple[float, ...]

    @property
    def steps(self) -> int:
        """How many steps are taken."""
        return len(self.rows)


class Levels(NamedTuple):
    """What a sampler of noise levels starts from: float64 arrays. Amounts have one more than times: after the last."""

    times: np.ndarray
    sigmas: np.ndarray
    picture: np.ndarray
    noise: np.ndarray


Weights = Callable[[int], tuple[float, float, float, float]]
"""a, b, c and fresh of a step by its number."""


def euler(c: Diffusion, steps: int, begin: int) -> Schedule:
    """Euler's method on the probability flow of Karras et al. 2022 (arXiv:2206.00364)."""
    at = _exploding(c, steps)

    def weights(i: int) -> tuple[float, float, float, float]:
        ratio = at.sigmas[i + 1] / at.sigmas[i]
        return ratio, 1 - ratio, 0.0, 0.0

    return _exploded(c, at, begin, weights)


def euler_ancestral(c: Diffusion, steps: int, begin: int) -> Schedule:
    """`euler` to less noise than the next step has, and new noise that makes up for it (k-diffusion's)."""
    at = _exploding(c, steps)

    def weights(i: int) -> tuple[float, float, float, float]:
        now, then = at.sigmas[i], at.sigmas[i + 1]
        up = np.sqrt(then**2 * (now**2 - then**2) / now**2)
        ratio = np.sqrt(then**2 - up**2) / now
        return ratio, 1 - ratio, 0.0, up

    return _exploded(c, at, begin, weights)


def dpmpp_2m(c: Diffusion, steps: int, begin: int, *, stochastic: bool = False) -> Schedule:
    """DPM-Solver++ of second order, multistep, midpoint: Lu et al. 2022 (arXiv:2211.01095), algorithm 2.

    The first step is of first order, and so is the last where sigma ends at 0, or with few steps.
    """
    trained = levels.sigmas_of_training(c)
    if c.karras:
        ends = c.sigma_min or float(trained[0]), c.sigma_max or float(trained[-1])
        sigmas = levels.karras(*ends, steps)
        times = levels.time_of(sigmas, trained).round()
    else:
        times = _within(c, levels.times_of_intervals(c, steps), steps)
        sigmas = np.interp(times, np.arange(len(trained)), trained)
    sigmas = _ended(c, sigmas, trained)
    signal = 1 / np.sqrt(sigmas**2 + 1)
    noise = sigmas * signal
    with np.errstate(divide="ignore"):  # log of the last sigma, 0
        log_ratio = -np.log(sigmas)
    last_is_first_order = c.euler_end or c.end_at_zero or (c.low_order_end and steps < 15)

    def weights(i: int) -> tuple[float, float, float, float]:
        h = log_ratio[i + 1] - log_ratio[i]
        a, fresh, b = noise[i + 1] / noise[i], 0.0, -signal[i + 1] * np.expm1(-h)
        if stochastic:
            a, b = a * np.exp(-h), -signal[i + 1] * np.expm1(-2 * h)
            fresh = noise[i + 1] * np.sqrt(-np.expm1(-2 * h))
        if i == begin or (i == steps - 1 and last_is_first_order):
            return a, b, 0.0, fresh
        extra = 0.5 * b * h / (log_ratio[i] - log_ratio[i - 1])
        return a, b + extra, -extra, fresh

    return _preserved(c, Levels(times, sigmas, signal, noise), begin, weights)


def dpmpp_2m_sde(c: Diffusion, steps: int, begin: int) -> Schedule:
    """`dpmpp_2m` on the stochastic equation: the same orders, with new noise in each step."""
    return dpmpp_2m(c, steps, begin, stochastic=True)


def ddim(c: Diffusion, steps: int, begin: int) -> Schedule:
    """Song et al. 2020 (arXiv:2010.02502) with eta 0: no new noise."""
    signal = levels.kept(c).astype(np.float64)
    raw = levels.times(c, steps)
    times = _within(c, raw.round() if c.spacing == "linspace" else raw, steps).astype(int)
    end = 1.0 if c.alpha_one else signal[0]
    # The time before is counted from this one, which with leading times and an offset is not the next one of the list.
    before = times - c.train_steps // steps
    then = np.where(before >= 0, signal[np.maximum(before, 0)], end)
    now = signal[times]

    def weights(i: int) -> tuple[float, float, float, float]:
        a = np.sqrt((1 - then[i]) / (1 - now[i]))
        return a, np.sqrt(then[i]) - a * np.sqrt(now[i]), 0.0, 0.0

    return _preserved(c, _of_signal(times, now), begin, weights)


def lcm(c: Diffusion, steps: int, begin: int) -> Schedule:
    """Latent consistency models, Luo et al. 2023 (arXiv:2310.04378): to the picture at once, then back into noise."""
    if steps > c.lcm_steps:
        raise RequestError(f"an LCM takes at most {c.lcm_steps} steps, got {steps}", param="steps")
    taught = (np.arange(c.lcm_steps, 0, -1) * (c.train_steps // c.lcm_steps) - 1).astype(int)
    times = taught[np.floor(np.linspace(0, len(taught), steps, endpoint=False)).astype(int)]
    now = levels.kept(c).astype(np.float64)[times]

    def weights(i: int) -> tuple[float, float, float, float]:
        scaled, half = times[i] * c.lcm_scale, 0.5
        skip, out = half**2 / (scaled**2 + half**2), scaled / np.sqrt(scaled**2 + half**2)
        if i == steps - 1:
            return skip, out, 0.0, 0.0
        signal = np.sqrt(now[i + 1])
        return signal * skip, signal * out, 0.0, np.sqrt(1 - now[i + 1])

    return _preserved(c, _of_signal(times, now), begin, weights)


def flow(c: Flow, steps: int, begin: int, tokens: int) -> Schedule:
    """Euler's method along a flow (Esser et al. 2024, arXiv:2403.03206), for a picture of so many tokens."""
    sigmas = levels.flow_sigmas(c, steps, tokens).astype(np.float64)
    times = (sigmas[:-1] * c.train_steps).astype(np.float32).astype(np.float64)
    rows = []
    for i, (now, then) in enumerate(pairwise(sigmas)):
        ratio = then / now
        a, b, fresh = (0.0, 1 - then, then) if c.stochastic else (ratio, 1 - ratio, 0.0)
        rows.append(_row(times[i], 1.0, 1.0, -now, a, b, 0.0, fresh, 1 - then, then))
    return _schedule(rows, 1.0, 1 - sigmas, sigmas, sigmas, begin)


Sampler = Callable[[Diffusion, int, int], Schedule]

SAMPLERS: Final[Mapping[str, Sampler]] = {
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_karras": lambda c, steps, begin: dpmpp_2m(replace(c, karras=True), steps, begin),
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_2m_sde_karras": lambda c, steps, begin: dpmpp_2m_sde(replace(c, karras=True), steps, begin),
    "ddim": ddim,
    "lcm": lcm,
    "lightning": lambda c, steps, begin: euler(replace(c, spacing="trailing"), steps, begin),
}
"""Samplers of noise levels by name. Lightning's models were distilled for times that begin with training's last."""

FLOW: Final = "flow"
"""The one sampler of a flow."""


def samplers(c: SchedulerConfig) -> tuple[str, ...]:
    """The names that `schedule` takes for a model."""
    return (FLOW,) if isinstance(c, Flow) else tuple(SAMPLERS)


def schedule(c: SchedulerConfig, steps: int, *, tokens: int, sampler: str | None = None, begin: int = 0) -> Schedule:
    """The table of a picture. `sampler`: None for the checkpoint's own. `tokens`: of the model, which shift a flow.

    The first `begin` steps are left out, as when another picture is started from. Raises RequestError for a sampler or
    a number of steps that the model does not have.
    """
    name = c.sampler if sampler is None else sampler
    if name not in samplers(c):
        raise RequestError(f"sampler {name!r} is not one of this model's: {', '.join(samplers(c))}", param="sampler")
    if not 1 <= steps <= c.train_steps:
        raise RequestError(f"steps must be from 1 to {c.train_steps}, got {steps}", param="steps")
    if not 0 <= begin < steps:
        raise ValueError(f"{begin} of {steps} steps cannot be left out")
    if isinstance(c, Flow):
        return flow(c, steps, begin, tokens)
    return SAMPLERS[name](c, steps, begin)


def _exploding(c: Diffusion, steps: int) -> Levels:
    """Levels where noise is added to a picture that keeps its size (variance exploding)."""
    trained = levels.sigmas_of_training(c)
    # In float32, as the samplers that look between two times of training do.
    times = _within(c, levels.times(c, steps), steps).astype(np.float32).astype(np.float64)
    sigmas = np.interp(times, np.arange(len(trained)), trained)
    if c.karras:
        sigmas = levels.karras(c.sigma_min or sigmas[-1], c.sigma_max or sigmas[0], steps)
        times = levels.time_of(sigmas, trained)
    sigmas = _ended(c, sigmas, trained)
    return Levels(times, sigmas, np.ones_like(sigmas), sigmas)


def _exploded(c: Diffusion, at: Levels, begin: int, weights: Weights) -> Schedule:
    largest = float(at.sigmas.max())
    pure = largest if c.spacing in ("linspace", "trailing") else float(np.sqrt(largest**2 + 1))
    signal = 1 / np.sqrt(at.sigmas**2 + 1)
    rows = []
    for i, time in enumerate(at.times):
        sigma, scale = at.sigmas[i], signal[i]
        keep, gain = {
            "epsilon": (1.0, -sigma),
            "v_prediction": (scale**2, -sigma * scale),
            "sample": (0.0, 1.0),
        }[c.prediction]
        rows.append(_row(time, scale, keep, gain, *weights(i), 1.0, at.sigmas[i + 1]))
    return _schedule(rows, pure, at.picture, at.noise, at.sigmas, begin)


def _preserved(c: Diffusion, at: Levels, begin: int, weights: Weights) -> Schedule:
    """The table where picture and noise have the variance 1 together (variance preserving)."""
    rows = []
    for i, time in enumerate(at.times):
        signal, noise = at.picture[i], at.noise[i]
        keep, gain = {
            "epsilon": (1 / signal, -noise / signal) if signal else (0.0, 0.0),
            "v_prediction": (signal, -noise),
            "sample": (0.0, 1.0),
        }[c.prediction]
        rows.append(_row(time, 1.0, keep, gain, *weights(i), at.picture[i + 1], at.noise[i + 1]))
    return _schedule(rows, 1.0, at.picture, at.noise, at.sigmas, begin)


def _schedule(
    rows: list[Row], pure: float, picture: np.ndarray, noise: np.ndarray, sigmas: np.ndarray, begin: int
) -> Schedule:
    # After the last step a known picture is put in as it is, whatever noise the sampler leaves.
    rows[-1] = rows[-1]._replace(picture=1.0, noise=0.0)
    return Schedule(
        tuple(rows[begin:]), pure, float(picture[begin]), float(noise[begin]), tuple(map(float, sigmas[begin:]))
    )


def _row(*values: float) -> Row:
    return Row(*map(float, values))


def _of_signal(times: np.ndarray, signal: np.ndarray) -> Levels:
    """Levels of shares of variance at the steps' starts; after the last there is no noise."""
    whole = np.append(signal, 1.0)
    with np.errstate(divide="ignore"):  # no signal at all, where the noise levels were rescaled to end so
        sigmas = np.sqrt((1 - whole) / whole)
    return Levels(times, sigmas, np.sqrt(whole), np.sqrt(1 - whole))


def _ended(c: Diffusion, sigmas: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """float64 [steps + 1]: with the sigma after the last step, all rounded to float32."""
    return np.append(sigmas, 0.0 if c.end_at_zero else trained[0]).astype(np.float32).astype(np.float64)


def _within(c: Diffusion, times: np.ndarray, steps: int) -> np.ndarray:
    """`times`, which must fall and be those of training: an offset moves some out, many steps make some equal."""
    if times.max() > c.train_steps - 1 or times.min() < 0 or (np.diff(times) >= 0).any():
        raise RequestError(f"{steps} steps do not fit the model's {c.train_steps} times: take fewer", param="steps")
    return times
