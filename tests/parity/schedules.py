"""diffusers' schedulers as the reference: their tables, and the way of a picture through them."""

from __future__ import annotations

from typing import Any, NamedTuple
from unittest.mock import patch

import diffusers
import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from tests.diffusion.samplers import Case, drawn


class Theirs(NamedTuple):
    """`times` [steps], `sigmas` [steps + 1] (None of DDIM and LCM), and after each step x and x's own scaled input.

    `start`: a picture noised to the level that the steps begin at; `pure`: what unit noise is multiplied by.
    """

    times: np.ndarray
    sigmas: np.ndarray | None
    inputs: list[np.ndarray]
    way: list[np.ndarray]
    start: np.ndarray
    pure: float
    levels: list[np.ndarray]


def followed(name: str, case: Case) -> Theirs:
    """Run diffusers' scheduler with outputs and noise of `drawn`; the picture starts from the noise `drawn` last."""
    scheduler = _scheduler(case)
    times = scheduler.timesteps[case.begin :]
    steps = len(times)
    outs, fresh = map(torch.from_numpy, (drawn(name + "out", steps), drawn(name + "fresh", steps)))
    noise, picture = map(torch.from_numpy, drawn(name + "start", 2))
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(case.begin)
    noised = scheduler.scale_noise if case.scheduler.startswith("FlowMatch") else scheduler.add_noise
    order = (
        (lambda t: (picture, t, noise)) if case.scheduler.startswith("FlowMatch") else (lambda t: (picture, noise, t))
    )
    start = noised(*order(times[:1])).numpy().squeeze()
    pure = float(getattr(scheduler, "init_noise_sigma", 1.0))
    x, inputs, way, levels = noise * pure, [], [], []
    for i, time in enumerate(times):
        seen = scheduler.scale_model_input(x, time) if hasattr(scheduler, "scale_model_input") else x
        inputs.append(seen.numpy())
        with patch(f"{type(scheduler).__module__}.randn_tensor", lambda *_, i=i, **__: fresh[i]):
            x = scheduler.step(outs[i], time, x, return_dict=False)[0]
        way.append(x.numpy())
        if i + 1 < steps:
            levels.append(noised(*order(times[i + 1 : i + 2])).numpy().squeeze())
    sigmas = getattr(scheduler, "sigmas", None)
    kept = None if sigmas is None else sigmas[case.begin :].numpy()
    return Theirs(times.numpy(), kept, inputs, way, start, pure, levels)


def _scheduler(case: Case) -> Any:
    scheduler = getattr(diffusers, case.scheduler).from_config(dict(case.config), **case.changes)
    if not case.scheduler.startswith("FlowMatch"):
        scheduler.set_timesteps(case.steps)
        return scheduler
    mu = calculate_shift(
        case.tokens,
        *(case.config[key] for key in ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")),
    )
    given = np.linspace(1.0, 1 / case.steps, case.steps)
    scheduler.set_timesteps(sigmas=given, mu=mu if case.config["use_dynamic_shifting"] else None)
    return scheduler
