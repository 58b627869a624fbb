"""scheduler_config.json: which noise levels a model was trained with, and how it is best sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from slipstream.errors import CheckpointError, UnsupportedModel
from slipstream.models.keys import Keys

Prediction = Literal["epsilon", "v_prediction", "sample"]
"""What a model gives: the noise, the velocity of Salimans and Ho 2022 (arXiv:2202.00512), or the picture itself."""

Spacing = Literal["linspace", "leading", "trailing"]
"""How the steps' times lie in those of training: Lin et al. 2023 (arXiv:2305.08891), table 2."""

T = TypeVar("T", bound=str)

FILE: Final = "scheduler_config.json"
FAMILY: Final = "scheduler"


@dataclass(frozen=True)
class Diffusion:
    """Noise that is added step by step (variance preserving), as SDXL and what is distilled from it were trained.

    `sampler`: the one that the checkpoint names, a key of `schedule.SAMPLERS`. `first`, `last`: the first and the last
    beta of training, `scaled`: their square roots are spaced evenly. `zero_snr`: betas are rescaled so that the last
    time is noise alone. `karras`: sigmas spaced as in Karras et al. 2022 (arXiv:2206.00364) between `sigma_min` and
    `sigma_max` (None: those of the steps). `offset`: added to times of leading spacing. `end_at_zero`: sigma after the
    last step is 0, else the smallest of training. `alpha_one`: DDIM's last step goes to a picture without noise.
    `low_order_end`, `euler_end`: how DPM++ ends (see `schedule.dpmpp_2m`). `lcm_steps`, `lcm_scale`: steps of an LCM's
    teacher, and the scale of times in its boundary condition.
    """

    sampler: str
    prediction: Prediction = "epsilon"
    spacing: Spacing = "leading"
    train_steps: int = 1000
    first: float = 0.0001
    last: float = 0.02
    scaled: bool = False
    zero_snr: bool = False
    karras: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    offset: int = 0
    end_at_zero: bool = True
    alpha_one: bool = True
    low_order_end: bool = True
    euler_end: bool = False
    lcm_steps: int = 50
    lcm_scale: float = 10.0


@dataclass(frozen=True)
class Flow:
    """Straight paths between noise and picture (flow matching), as Flux was trained.

    Times are shifted towards noise: by `shift`, or where it is `dynamic` by the number of tokens of a picture, along
    the line through (`least_tokens`, `least_shift`) and (`most_tokens`, `most_shift`). `curve`: the shift's form.
    `terminal`: the last sigma before 0, None as it comes. `stochastic`: each step draws new noise.
    """

    sampler: str = "flow"
    train_steps: int = 1000
    shift: float = 1.0
    dynamic: bool = False
    least_tokens: int = 256
    most_tokens: int = 4096
    least_shift: float = 0.5
    most_shift: float = 1.15
    curve: Literal["exponential", "linear"] = "exponential"
    terminal: float | None = None
    stochastic: bool = False


SchedulerConfig = Diffusion | Flow

CLASSES: Final[Mapping[str, str]] = {
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DDIMScheduler": "ddim",
    "LCMScheduler": "lcm",
    "FlowMatchEulerDiscreteScheduler": "flow",
}
"""diffusers' class names and the samplers that they are here."""

_DEFAULT_SPACING: Final[Mapping[str, Spacing]] = {"ddim": "leading", "lcm": "leading"}

# Keys that a scheduler's file keeps from the class that it was made of, and that none of CLASSES computes with.
_INERT: Final = ("_class_name", "_diffusers_version", "_use_default_values", "skip_prk_steps", "sample_max_value")


def read(config: Mapping[str, Any]) -> SchedulerConfig:
    """From the file's keys; defaults are those of diffusers' class that it names.

    Raises UnsupportedModel for a class or a value that is not computed here, UnknownConfigKeys for a key that no code
    reads.
    """
    keys = Keys(config, FAMILY, file=FILE)
    name = keys.take("_class_name", str)
    if name not in CLASSES:
        raise UnsupportedModel(f"{FILE} names {name}, which Slipstream does not compute; it has {', '.join(CLASSES)}")
    sampler = CLASSES[name]
    found = _flow(keys) if sampler == "flow" else _diffusion(keys, sampler)
    keys.finish(_INERT)
    return found


def _flow(keys: Keys) -> Flow:
    for name in ("invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"):
        keys.expect(name, False)
    terminal = keys.optional("shift_terminal", float)
    least, most = keys.size("base_image_seq_len", 256), keys.size("max_image_seq_len", 4096)
    if least >= most:
        raise CheckpointError(f"{FILE}: max_image_seq_len {most} must be over base_image_seq_len {least}")
    return Flow(
        train_steps=keys.size("num_train_timesteps", 1000),
        shift=keys.positive("shift", 1.0),
        dynamic=keys.take("use_dynamic_shifting", bool, False),
        least_tokens=least,
        most_tokens=most,
        least_shift=keys.take("base_shift", float, 0.5),
        most_shift=keys.take("max_shift", float, 1.15),
        curve=_one_of(keys, "time_shift_type", ("exponential", "linear"), "exponential"),
        terminal=terminal or None,
        stochastic=keys.take("stochastic_sampling", bool, False),
    )


def _diffusion(keys: Keys, sampler: str) -> Diffusion:
    for name in ("use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas", "thresholding"):
        keys.expect(name, False)
    keys.expect("use_dynamic_shifting", False)
    keys.expect("interpolation_type", "linear")
    keys.expect("timestep_type", "discrete")
    keys.expect("solver_order", 2)
    keys.expect("solver_type", "midpoint")
    # Clipping is for models of pixels; diffusers' DDIM clips unless it is told not to.
    if keys.take("clip_sample", bool, sampler == "ddim") and sampler in ("ddim", "lcm"):
        raise UnsupportedModel(f"{FILE} sets clip_sample; Slipstream samples latents, which are not clipped")
    algorithm = _one_of(keys, "algorithm_type", ("dpmsolver++", "sde-dpmsolver++"), "dpmsolver++")
    if algorithm == "sde-dpmsolver++" and sampler == "dpmpp_2m":
        sampler = "dpmpp_2m_sde"
    # What only other values of the keys above would read.
    keys.ignore(("clip_sample_range", "dynamic_thresholding_ratio", "flow_shift", "time_shift_type"))
    keys.expect("lambda_min_clipped", float("-inf"))
    prediction: Prediction = _one_of(keys, "prediction_type", ("epsilon", "v_prediction", "sample"), "epsilon")
    zero_snr = keys.take("rescale_betas_zero_snr", bool, False)
    if zero_snr and prediction == "epsilon":
        raise UnsupportedModel(f"{FILE}: rescale_betas_zero_snr needs prediction_type v_prediction or sample")
    spacing = _one_of(
        keys, "timestep_spacing", ("linspace", "leading", "trailing"), _DEFAULT_SPACING.get(sampler, "linspace")
    )
    lcm = sampler == "lcm"
    found = Diffusion(
        sampler=sampler,
        prediction=prediction,
        spacing=spacing,
        train_steps=keys.size("num_train_timesteps", 1000),
        first=keys.positive("beta_start", 0.00085 if lcm else 0.0001),
        last=keys.positive("beta_end", 0.012 if lcm else 0.02),
        scaled=_one_of(keys, "beta_schedule", ("linear", "scaled_linear"), "scaled_linear" if lcm else "linear")
        == "scaled_linear",
        zero_snr=zero_snr,
        karras=keys.take("use_karras_sigmas", bool, False),
        sigma_min=keys.optional("sigma_min", float),
        sigma_max=keys.optional("sigma_max", float),
        offset=keys.take("steps_offset", int, 0),
        end_at_zero=_one_of(keys, "final_sigmas_type", ("zero", "sigma_min"), "zero") == "zero",
        alpha_one=keys.take("set_alpha_to_one", bool, True),
        low_order_end=keys.take("lower_order_final", bool, True),
        euler_end=keys.take("euler_at_final", bool, False),
        lcm_steps=keys.size("original_inference_steps", 50),
        lcm_scale=keys.positive("timestep_scaling", 10.0),
    )
    if not found.first <= found.last < 1:
        raise CheckpointError(f"{FILE}: beta_start {found.first:g} and beta_end {found.last:g} are no noise levels")
    return found


def _one_of(keys: Keys, name: str, choices: tuple[T, ...], default: T) -> T:
    """A key with one of a few values. Raises UnsupportedModel for another."""
    value = keys.take(name, str, str(default))
    for choice in choices:
        if value == choice:
            return choice
    raise UnsupportedModel(f"{FILE} sets {name} to {value!r}; Slipstream computes {', '.join(choices)}")
