"""How much noise there is at each time of training, and at which of them a sampler looks.

Numbers are rounded where PyTorch rounds them, to float32: it is with these that models were trained and are compared.
"""

from __future__ import annotations

from math import exp
from typing import Final

import numpy as np

from slipstream.diffusion.scheduler_config import Diffusion, Flow

RHO: Final = 7.0
"""The exponent that Karras et al. 2022 chose (arXiv:2206.00364, equation 5)."""

NEARLY_ZERO: Final = np.float32(2**-24)
"""Stands for no signal at all where sigma, its reciprocal, must be finite."""


def kept(c: Diffusion) -> np.ndarray:
    """float32 [train_steps]: the share of the picture's variance that is left at each time of training."""
    if c.scaled:
        ends = np.float64(c.first) ** 0.5, np.float64(c.last) ** 0.5
        betas = np.linspace(*ends, c.train_steps).astype(np.float32) ** 2
    else:
        betas = np.linspace(c.first, c.last, c.train_steps).astype(np.float32)
    alphas = np.float32(1) - betas
    if c.zero_snr:
        # The signal's amplitude is moved down so that it ends at 0, and stretched so that it begins where it did.
        amplitude = np.sqrt(np.cumprod(alphas, dtype=np.float64))
        first, last = amplitude[0], amplitude[-1]
        signal = ((amplitude - last) * (first / (first - last))) ** 2
        return signal.astype(np.float32)
    return np.cumprod(alphas, dtype=np.float64).astype(np.float32)


def sigmas_of_training(c: Diffusion) -> np.ndarray:
    """float32 [train_steps]: noise over signal at each time of training, rising."""
    signal = kept(c)
    if c.zero_snr:
        signal[-1] = NEARLY_ZERO
    sigmas: np.ndarray = np.sqrt((np.float32(1) - signal) / signal)
    return sigmas


def times(c: Diffusion, steps: int) -> np.ndarray:
    """float64 [steps], falling: times of training, of which those of "linspace" may lie between two."""
    if c.spacing == "linspace":
        return np.linspace(0, c.train_steps - 1, steps)[::-1]
    if c.spacing == "leading":
        return np.arange(steps)[::-1] * float(c.train_steps // steps) + c.offset
    return trailing(c.train_steps, steps)


def times_of_intervals(c: Diffusion, steps: int) -> np.ndarray:
    """float64 [steps], falling and whole: `times` as DPM-Solver divides them, with one more that is not looked at."""
    if c.spacing == "linspace":
        return np.linspace(0, c.train_steps - 1, steps + 1).round()[:0:-1]
    if c.spacing == "leading":
        return np.arange(1, steps + 1)[::-1] * float(c.train_steps // (steps + 1)) + c.offset
    return trailing(c.train_steps, steps)


def trailing(train_steps: int, steps: int) -> np.ndarray:
    """float64 [steps]: from the last time of training down, in even strides."""
    # Counted rather than bounded: rounding makes one too many of some numbers of steps.
    return (train_steps - np.arange(steps) * (train_steps / steps)).round() - 1


def karras(least: float, most: float, steps: int) -> np.ndarray:
    """float64 [steps]: sigmas from `most` down to `least`, evenly spaced in their seventh root."""
    low, high = least ** (1 / RHO), most ** (1 / RHO)
    spaced: np.ndarray = (high + np.linspace(0, 1, steps) * (low - high)) ** RHO
    return spaced


def time_of(sigmas: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """float64: the times, between those of training, at which `sigmas` are found; by their logarithms."""
    return np.interp(np.log(np.maximum(sigmas, 1e-10)), np.log(trained), np.arange(len(trained)))


def flow_sigmas(c: Flow, steps: int, tokens: int) -> np.ndarray:
    """float32 [steps + 1]: the share of noise at each step's start for a picture of so many tokens, then 0."""
    sigmas = np.linspace(1.0, 1 / steps, steps).astype(np.float32).astype(np.float64)
    if c.dynamic:
        slope = (c.most_shift - c.least_shift) / (c.most_tokens - c.least_tokens)
        shift = tokens * slope + (c.least_shift - slope * c.least_tokens)
        shift = exp(shift) if c.curve == "exponential" else shift
        sigmas = shift / (shift + (1 / sigmas - 1))
    else:
        sigmas = c.shift * sigmas / (1 + (c.shift - 1) * sigmas)
    if c.terminal is not None and steps > 1:
        sigmas = 1 - (1 - sigmas) * (1 - c.terminal) / (1 - sigmas[-1])
    return np.append(sigmas, 0.0).astype(np.float32)
