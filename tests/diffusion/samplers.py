"""Cases of samplers, as diffusers and as this package have them, and a picture's way through a table in numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from slipstream.diffusion.schedule import Schedule, schedule
from slipstream.diffusion.scheduler_config import read

SDXL: Mapping[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}
"""scheduler_config.json of SDXL's base model, as it is published."""

FLUX_DEV: Mapping[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.30.0.dev0",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
FLUX_SCHNELL: Mapping[str, Any] = {**FLUX_DEV, "shift": 1.0, "use_dynamic_shifting": False}


@dataclass(frozen=True)
class Case:
    """A sampler with a number of steps. `config`: the file. `sampler`: asked for, None: the file's.

    `theirs` and `changes`: diffusers' class for it, and what it must be told besides the file. `begin`: steps that are
    left out. `tokens`: of the picture, for a flow.
    """

    config: Mapping[str, Any]
    steps: int
    sampler: str | None = None
    theirs: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    begin: int = 0
    tokens: int = 4096

    @property
    def scheduler(self) -> str:
        """diffusers' class."""
        return self.theirs or self.config["_class_name"]

    def schedule(self) -> Schedule:
        """The table."""
        return schedule(read(self.config), self.steps, tokens=self.tokens, sampler=self.sampler, begin=self.begin)


ANCESTRAL, DPM, DDIM, LCM = (
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DDIMScheduler",
    "LCMScheduler",
)
TRAILING = {**SDXL, "timestep_spacing": "trailing", "steps_offset": 0}
LINEAR = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "linspace", "prediction_type": "v_prediction"}
ZERO_SNR = {**TRAILING, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
SDE = {"algorithm_type": "sde-dpmsolver++"}
KARRAS = {"use_karras_sigmas": True}

CASES: Mapping[str, Case] = {
    "euler-30": Case(SDXL, 30),
    "euler-1": Case(SDXL, 1),
    "euler-begun": Case(SDXL, 12, begin=7),
    "euler-karras": Case({**SDXL, **KARRAS}, 11),
    "euler-linspace-v": Case(LINEAR, 9),
    "euler-zero-snr": Case(ZERO_SNR, 8),
    "euler-sigma-min": Case({**SDXL, "final_sigmas_type": "sigma_min"}, 6),
    "lightning": Case(SDXL, 4, "lightning", changes={"timestep_spacing": "trailing"}),
    "lightning-8": Case(SDXL, 8, "lightning", changes={"timestep_spacing": "trailing"}),
    "ancestral": Case(SDXL, 14, "euler_ancestral", ANCESTRAL),
    "ancestral-own-v": Case({**LINEAR, "_class_name": ANCESTRAL}, 7, begin=2),
    "dpm": Case(SDXL, 20, "dpmpp_2m", DPM),
    "dpm-few": Case(SDXL, 5, "dpmpp_2m", DPM),
    "dpm-begun": Case(SDXL, 16, "dpmpp_2m", DPM, begin=9),
    "dpm-karras": Case(SDXL, 20, "dpmpp_2m_karras", DPM, KARRAS),
    "dpm-karras-few": Case(SDXL, 6, "dpmpp_2m_karras", DPM, KARRAS),
    "dpm-linspace-v": Case({**LINEAR, "_class_name": DPM}, 10),
    "dpm-trailing": Case({**TRAILING, "_class_name": DPM}, 10),
    "dpm-sigma-min": Case({**SDXL, "_class_name": DPM, "final_sigmas_type": "sigma_min"}, 17),
    "dpm-sde": Case(SDXL, 16, "dpmpp_2m_sde", DPM, SDE),
    "dpm-sde-karras": Case(SDXL, 7, "dpmpp_2m_sde_karras", DPM, {**SDE, **KARRAS}),
    "ddim": Case(SDXL, 20, "ddim", DDIM),
    "ddim-begun": Case(SDXL, 10, "ddim", DDIM, begin=3),
    "ddim-trailing-v": Case({**ZERO_SNR, "_class_name": DDIM}, 9),
    "ddim-linspace": Case({**SDXL, "_class_name": DDIM, "timestep_spacing": "linspace", "set_alpha_to_one": True}, 9),
    "lcm": Case(SDXL, 4, "lcm", LCM),
    "lcm-1": Case(SDXL, 1, "lcm", LCM),
    "lcm-begun": Case({**SDXL, "_class_name": LCM, "prediction_type": "v_prediction"}, 8, begin=4),
    "flux-dev": Case(FLUX_DEV, 28),
    "flux-dev-small": Case(FLUX_DEV, 5, tokens=24 * 37),
    "flux-dev-begun": Case(FLUX_DEV, 20, begin=8, tokens=1024),
    "flux-schnell": Case(FLUX_SCHNELL, 4),
    "flow-shift": Case({**FLUX_SCHNELL, "shift": 3.0}, 7),
    "flow-terminal": Case({**FLUX_DEV, "shift_terminal": 0.1, "time_shift_type": "linear"}, 6),
    "flow-stochastic": Case({**FLUX_SCHNELL, "stochastic_sampling": True}, 6),
}

SHAPE = (6, 5)


def drawn(name: str, count: int) -> np.ndarray:
    """float32 [count, ...SHAPE]: what stands for models' outputs, and for noise."""
    return np.random.default_rng(list(name.encode())).standard_normal((count, *SHAPE), dtype=np.float32)


def way(table: Schedule, x: np.ndarray, outs: Sequence[np.ndarray], fresh: Sequence[np.ndarray]) -> list[np.ndarray]:
    """x after each step, in float32, for given outputs of a model and given noise."""
    found, before = [], np.zeros_like(x)
    for row, out, noise in zip(table.rows, outs, fresh, strict=True):
        row = type(row)(*map(np.float32, row))
        denoised = row.keep * x + row.gain * out
        x = row.a * x + row.b * denoised + row.c * before + row.fresh * noise
        before = denoised
        found.append(x)
    return found
