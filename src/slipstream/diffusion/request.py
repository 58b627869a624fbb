"""What is asked of an image model, and the checks that come before any work. No JAX here."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from secrets import randbits
from typing import TYPE_CHECKING

import numpy as np

from slipstream.diffusion.reuse import Reuse
from slipstream.diffusion.schedule import Schedule, samplers, schedule
from slipstream.diffusion.scheduler_config import SchedulerConfig
from slipstream.errors import RequestError

if TYPE_CHECKING:
    from slipstream.diffusion.pipeline import Family

logger = logging.getLogger(__name__)

FEW_STEPS = ("lcm", "lightning")
"""Samplers of models that were distilled to a few steps, and to do without true guidance."""

MOST_GUIDANCE = MOST_SCALE = 100.0
SEEDS = 1 << 64


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureRequest:
    """One picture. None: what the model has by default.

    `guidance`: SDXL's is true guidance (two passes of the model a step, for over 1). Flux dev has it as an input, and
    `true_guidance` beside it; in schnell, which has none, it is true guidance where there is a negative prompt.
    `latents`: unit noise float32 [channels, height / 8, width / 8] to start from in place of the seed's.

    `picture` float32 [height, width, 3] in 0..1 is what to change, by `strength` 0..1 (1: all of it). `mask` float32
    [height, width] is 1 where it is to be repainted; what else it shows stays. `reuse`: steps to guess.
    `loras`: how much of each adapter, by its name: 1 is as it was trained. `first_block`: the limit of first-block
    caching, 0 for none of it.
    """

    id: str
    prompt: str
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    true_guidance: float | None = None
    seed: int | None = None
    sampler: str | None = None
    latents: np.ndarray | None = None
    picture: np.ndarray | None = None
    mask: np.ndarray | None = None
    strength: float | None = None
    reuse: Reuse | None = None
    loras: Mapping[str, float] | None = None
    first_block: float | None = None


@dataclass(frozen=True)
class Limits:
    """What a request may ask for, so that no request can take all memory or all time."""

    pixels: int = 2048 * 2048
    steps: int = 500
    least_side: int = 8
    characters: int = 50_000


@dataclass(frozen=True, eq=False)
class Job:
    """A request with everything decided. `guidance`: of two passes; 1 for one pass. `embedded`: the model's input.

    `negative`: the other pass's text, None for zeros (or for one pass). `begin`: steps of the schedule left out, which
    count in the noise of those that follow. `pure`: it starts from noise alone. `loras`: how much of each adapter of
    the model, in their order. `limit`: of first-block caching, 0 for none.
    """

    request: PictureRequest
    width: int
    height: int
    schedule: Schedule
    begin: int
    guidance: float
    embedded: float
    negative: str | None
    seed: int
    pure: bool
    loras: tuple[float, ...] = ()
    limit: float = 0.0


def resolve(
    request: PictureRequest, family: Family, config: SchedulerConfig, limits: Limits, adapters: Sequence[str] = ()
) -> Job:
    """Check a request and fill in the model's defaults. Raises RequestError that names the field at fault."""
    _text(request.prompt, "prompt", limits)
    if request.negative_prompt is not None:
        _text(request.negative_prompt, "negative_prompt", limits)
    given = None if request.picture is None else request.picture.shape[:2]
    height, width = size(request.height, request.width, given, family, limits)
    sampler = config.sampler if request.sampler is None else request.sampler
    if sampler not in samplers(config):
        known = ", ".join(samplers(config))
        raise RequestError(f"sampler {sampler!r} is not one of this model's: {known}", param="sampler")
    guidance, embedded = guidances(request, family, few=sampler in FEW_STEPS)
    steps = request.steps
    if steps is None:
        steps = min(4, family.traits.steps) if sampler in FEW_STEPS else family.traits.steps
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= limits.steps:
        raise RequestError(f"steps must be a whole number from 1 to {limits.steps}, got {steps!r}", param="steps")
    begin = _begin(request, family, steps)
    _latents(request, family, height, width)
    _known(request, family, height, width)
    tokens = family.tokens(height, width)
    rows = schedule(config, steps, tokens=tokens, sampler=sampler, begin=begin)
    negative = request.negative_prompt
    if guidance > 1 and negative is None and not family.traits.zeros:
        negative = ""
    seed = randbits(32) if request.seed is None else request.seed
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise RequestError(f"seed must be a whole number from 0 to 2^64 - 1, got {seed!r}", param="seed")
    pure = request.picture is None or (request.mask is not None and request.strength in (None, 1))
    loras = scales_of(request.loras or {}, adapters)
    return Job(request, width, height, rows, begin, guidance, embedded, negative, seed, pure, loras)


def scales_of(loras: Mapping[str, float], adapters: Sequence[str]) -> tuple[float, ...]:
    """How much of each adapter. Raises RequestError for a name that none of them has, and for what is no number."""
    for name, scale in loras.items():
        if name not in adapters:
            there = f"there are {', '.join(adapters)}" if adapters else "none was named when the model was started"
            raise RequestError(f"there is no LoRA {str(name)[:64]!r}: {there}", param="loras", code="unknown_lora")
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not abs(scale) <= MOST_SCALE:
            raise RequestError(
                f"the scale of LoRA {name} must be a number from -{MOST_SCALE:g} to {MOST_SCALE:g}, got {scale!r}",
                param="loras",
            )
    return tuple(float(loras.get(name, 0.0)) for name in adapters)


def size(
    height: int | None, width: int | None, given: tuple[int, int] | None, family: Family, limits: Limits
) -> tuple[int, int]:
    """Height and width in pixels: as asked for, else those `given` cut to what the model takes, else its own.

    Raises RequestError for what the model or the limits do not allow.
    """
    traits = family.traits
    default = [side // traits.multiple * traits.multiple for side in given or (traits.side, traits.side)]
    sides = {"height": default[0] if height is None else height, "width": default[1] if width is None else width}
    for name, side in sides.items():
        if isinstance(side, bool) or not isinstance(side, int) or side < max(limits.least_side, traits.multiple):
            least = max(limits.least_side, traits.multiple)
            raise RequestError(f"{name} must be a whole number of pixels from {least} up, got {side!r}", param=name)
        if side % traits.multiple:
            lower = side // traits.multiple * traits.multiple
            raise RequestError(
                f"{name} {side} is not a multiple of {traits.multiple}: take {lower} or {lower + traits.multiple}",
                param=name,
            )
    if sides["height"] * sides["width"] > limits.pixels:
        raise RequestError(
            f"{sides['width']} x {sides['height']} is {sides['width'] * sides['height']} pixels, at most "
            f"{limits.pixels} are made: lower width or height",
            param="size",
        )
    return sides["height"], sides["width"]


def guidances(request: PictureRequest, family: Family, *, few: bool = False) -> tuple[float, float]:
    """True guidance (1: one pass) and the guidance that is an input of the model, which reads it or not.

    `few`: the sampler is one for distilled models. Raises RequestError for a value that the model does not read.
    """
    traits = family.traits
    for name in ("guidance", "true_guidance"):
        value = getattr(request, name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise RequestError(f"{name} must be a number, got {value!r}", param=name)
        if not 0 <= value <= MOST_GUIDANCE:
            raise RequestError(f"{name} must be from 0 to {MOST_GUIDANCE:g}, got {value:g}", param=name)
    true, embedded = request.true_guidance, request.guidance
    if traits.true_guidance is not None:
        if true is not None:
            raise RequestError("this model's guidance is true guidance: use guidance", param="true_guidance")
        true = (1.0 if few else traits.true_guidance) if request.guidance is None else request.guidance
        embedded = None
    elif not traits.embeds_guidance and true is None and request.guidance is not None:
        # What a model without guidance of its own can do with it takes a negative prompt, as in diffusers.
        if request.negative_prompt is not None:
            true = request.guidance
        elif request.guidance > 1:
            logger.warning(
                "this model reads no guidance: %g changes nothing without a negative prompt", request.guidance
            )
    true = max(1.0, 1.0 if true is None else float(true))
    if request.negative_prompt and true == 1:
        name = "true_guidance" if traits.embeds_guidance else "guidance"
        raise RequestError(f"negative_prompt is read with {name} over 1 only", param="negative_prompt")
    default = 0.0 if traits.guidance is None else traits.guidance
    return true, default if embedded is None else float(embedded)


def _begin(request: PictureRequest, family: Family, steps: int) -> int:
    strength = request.strength
    if request.picture is None:
        for name in ("strength", "mask"):
            if getattr(request, name) is not None:
                raise RequestError(f"{name} needs an image", param=name)
        return 0
    if strength is None:
        strength = 1.0 if request.mask is not None else 0.6
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 < strength <= 1:
        raise RequestError(f"strength must be over 0 and at most 1, got {strength!r}", param="strength")
    begin = family.begin(steps, float(strength))
    if begin >= steps:
        raise RequestError(
            f"strength {strength:g} of {steps} steps leaves none: raise strength or steps", param="strength"
        )
    return begin


def _latents(request: PictureRequest, family: Family, height: int, width: int) -> None:
    if request.latents is None:
        return
    traits = family.traits
    shape = (traits.channels, height // traits.factor, width // traits.factor)
    if request.latents.shape != shape:
        raise RequestError(
            f"latents of {width} x {height} pixels are {list(shape)}, got {list(request.latents.shape)}",
            param="latents",
        )
    if not np.issubdtype(request.latents.dtype, np.floating) or not np.isfinite(request.latents).all():
        raise RequestError("latents must be finite floats", param="latents")


def _known(request: PictureRequest, family: Family, height: int, width: int) -> None:
    """The shapes of the known picture and its mask."""
    for name, value, shape in (("image", request.picture, (height, width, 3)), ("mask", request.mask, (height, width))):
        if value is not None and value.shape != shape:
            raise RequestError(f"{name} must be {list(shape)}, got {list(value.shape)}", param=name)
    if family.traits.extra and (request.picture is None or request.mask is None):
        raise RequestError("this model repaints parts of a picture: send image and mask", param="image")


def _text(text: object, name: str, limits: Limits) -> None:
    if not isinstance(text, str):
        raise RequestError(f"{name} must be text, got {type(text).__name__}", param=name)
    if len(text) > limits.characters:
        raise RequestError(f"{name} has {len(text)} characters, at most {limits.characters} are read", param=name)
