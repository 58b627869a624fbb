"""The UNet of Stable Diffusion XL and of those built like it (diffusers' UNet2DConditionModel).

Podell et al. 2023 (arXiv:2307.01952); Rombach et al. 2021 (arXiv:2112.10752). Base, refiner, inpainting, distilled ones
with fewer layers, LCM with embedded guidance. Stable Diffusion 1 and 2 have the same parts,
without `sizes` and `pooled`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import log

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from slipstream.kernels.convolution import conv
from slipstream.kernels.ragged import Kernels
from slipstream.models.image.blocks import (
    LONGEST_PERIOD,
    Embedder,
    Linear,
    embedded,
    linear,
    plan_embedder,
    plan_layer_norm,
    plan_linear,
    sinusoid,
)
from slipstream.models.image.residual import (
    Resnet,
    double,
    halve,
    plan_conv,
    plan_resnet,
    prepare_double,
    prepare_resnet,
    resnet,
)
from slipstream.models.image.transformer import Transformer, plan_transformer, transform
from slipstream.models.image.unet_config import Config as Config
from slipstream.models.image.unet_config import Level
from slipstream.spec.param import Axis


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Blocks:
    """One resolution: residual blocks, the transformer behind each (or None), and what changes the resolution after."""

    resnets: tuple[Resnet, ...]
    transformers: tuple[Transformer | None, ...]
    sampler: Linear | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weights:
    """All weights. `down`, `middle` and `up` are `Blocks` for each level of the config."""

    conv_in: Linear
    time: Embedder
    guidance: Linear | None
    added: Embedder | None
    down: tuple[Blocks, ...]
    middle: Blocks | None
    up: tuple[Blocks, ...]
    norm: Linear
    conv_out: Linear


def plan(c: Config) -> Weights:
    """The weights' tree with a `Param` at each leaf."""
    first, steering = c.channels, Axis("vector", "d", c.time_size)
    guidance = None
    if c.guidance_size is not None:
        given = Axis("guidance", "g", c.guidance_size)
        guidance = plan_linear(given, Axis("waves", "c", first), "time_embedding.cond_proj", bias=False)
    return Weights(
        conv_in=plan_conv("conv_in", c.in_channels, first),
        time=plan_embedder(Axis("waves", "c", first), steering, "time_embedding"),
        guidance=guidance,
        added=None if c.added is None else plan_embedder(Axis("waves", "c", c.added.inputs), steering, "add_embedding"),
        down=tuple(_plan_down(c)),
        middle=None if c.middle is None else _plan_middle(c, c.middle),
        up=tuple(_plan_up(c)),
        norm=plan_layer_norm(Axis("inputs", "i", first), "conv_norm_out"),
        conv_out=plan_conv("conv_out", first, c.out_channels),
    )


def _plan_down(c: Config) -> Iterator[Blocks]:
    channels = c.channels
    for i, level in enumerate(c.down):
        at, last = f"down_blocks.{i}.", i == len(c.down) - 1
        inputs = (channels, *(level.channels,) * (len(level.depths) - 1))
        sampler = None if last else plan_conv(at + "downsamplers.0.conv", level.channels, level.channels)
        yield _plan_blocks(c, at, level, inputs, sampler)
        channels = level.channels


def _plan_middle(c: Config, level: Level) -> Blocks:
    at, width = "mid_block.", level.channels
    resnets = tuple(plan_resnet(f"{at}resnets.{i}.", width, width, c.time_size) for i in range(2))
    return Blocks(resnets, (plan_transformer(at + "attentions.0.", c.shape(level), level.depths[0]), None), None)


def _plan_up(c: Config) -> Iterator[Blocks]:
    channels = c.up[0].channels
    for i, level in enumerate(c.up):
        at, last = f"up_blocks.{i}.", i == len(c.up) - 1
        # Each residual block also gets what one of the way down left: the last one here that of a level before.
        left = c.up[min(i + 1, len(c.up) - 1)].channels
        count = len(level.depths)
        before = (channels, *(level.channels,) * (count - 1))
        skips = (*(level.channels,) * (count - 1), left)
        inputs = [a + b for a, b in zip(before, skips, strict=True)]
        sampler = None if last else plan_conv(at + "upsamplers.0.conv", level.channels, level.channels)
        yield _plan_blocks(c, at, level, inputs, sampler)
        channels = level.channels


def _plan_blocks(c: Config, at: str, level: Level, inputs: Sequence[int], sampler: Linear | None) -> Blocks:
    resnets = tuple(
        plan_resnet(f"{at}resnets.{i}.", given, level.channels, c.time_size) for i, given in enumerate(inputs)
    )
    transformers = tuple(
        plan_transformer(f"{at}attentions.{i}.", c.shape(level), depth) if depth else None
        for i, depth in enumerate(level.depths)
    )
    return Blocks(resnets, transformers, sampler)


def forward(
    w: Weights,
    c: Config,
    latents: Array,
    time: Array,
    text: Array,
    pooled: Array | None = None,
    sizes: Array | None = None,
    *,
    guidance: Array | None = None,
    kernels: Kernels = "reference",
) -> Array:
    """The model's prediction [b, y, x, out] for latents [b, y, x, in].

    time: float [b], as the schedule counts (0..999). text: [b, c, text]. pooled [b, p] and sizes float [b, 6] (height
    and width of the original, top and left of the crop, height and width of the target) where the config has `added`.
    guidance: float [b], as given by the user, where the config has `guidance_size`.
    """
    steering = jax.nn.silu(_steering(w, c, time, pooled, sizes, guidance, latents.dtype))

    def blocks(w: Blocks, level: Level, i: int, x: Array) -> Array:
        x = resnet(w.resnets[i], c.norms, x, steering, kernels)
        one = w.transformers[i]
        return x if one is None else transform(one, c.shape(level), level.depths[i], x, text, kernels)

    x = conv(latents, w.conv_in.weight, w.conv_in.bias, kernels=kernels)
    left = [x]
    for level, part in zip(c.down, w.down, strict=True):
        for i in range(len(part.resnets)):
            x = blocks(part, level, i, x)
            left.append(x)
        if part.sampler is not None:
            x = halve(part.sampler, x, kernels=kernels)
            left.append(x)
    if c.middle is not None and w.middle is not None:
        for i in range(len(w.middle.resnets)):
            x = blocks(w.middle, c.middle, i, x)
    for level, part in zip(c.up, w.up, strict=True):
        for i in range(len(part.resnets)):
            x = blocks(part, level, i, jnp.concatenate([x, left.pop()], axis=-1))
        if part.sampler is not None:
            rows, columns = left[-1].shape[1:3]
            x = double(part.sampler, x, (rows, columns), kernels)
    x = c.norms(x, w.norm, kernels, silu=True)
    return conv(x, w.conv_out.weight, w.conv_out.bias, kernels=kernels)


def _steering(
    w: Weights,
    c: Config,
    time: Array,
    pooled: Array | None,
    sizes: Array | None,
    guidance: Array | None,
    dtype: jnp.dtype,
) -> Array:
    """The vector [b, time_size] of time, guidance, pooled text and sizes that steers all residual blocks."""

    x = sinusoid(time, c.channels).astype(dtype)
    if w.guidance is not None and c.guidance_size is not None:
        if guidance is None:
            raise ValueError("this unet embeds guidance: pass it")
        x = x + linear("tg,gc->tc", _waves_of_guidance(guidance, c.guidance_size).astype(dtype), w.guidance)
    x = embedded(w.time, x)
    if w.added is None or c.added is None:
        return x
    if pooled is None or sizes is None:
        raise ValueError("this unet embeds a pooled text and sizes: pass them")
    numbers = sinusoid(sizes, c.added.each).reshape(sizes.shape[0], -1)
    return x + embedded(w.added, jnp.concatenate([pooled, numbers], axis=-1).astype(dtype))


def _waves_of_guidance(guidance: Array, size: int) -> Array:
    """Guidance [b] as [b, size]. Users count from 1, which is none; in training that was 0."""
    half = size // 2
    steps = np.arange(half, dtype=np.float32) / np.float32(half - 1)
    angles = (guidance.astype(jnp.float32)[:, None] - 1) * 1000 * np.exp(np.float32(-log(LONGEST_PERIOD)) * steps)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def prepare(w: Weights, c: Config, size: tuple[int, int]) -> Weights:
    """The weights with convolutions in the form that a CPU is fastest with for latents of `size` rows and columns.

    They serve other sizes as well. In float32 a model of SDXL's size takes 2 GiB more.
    """
    sizes = [(-(-size[0] // (1 << i)), -(-size[1] // (1 << i))) for i in range(len(c.down))]

    def blocks(part: Blocks, size: tuple[int, int]) -> Blocks:
        return replace(part, resnets=tuple(prepare_resnet(one, size) for one in part.resnets))

    def up(part: Blocks, i: int) -> Blocks:
        part = blocks(part, sizes[i])
        return part if i == 0 else replace(part, sampler=prepare_double(part.sampler, sizes[i - 1]))

    return replace(
        w,
        down=tuple(blocks(part, one) for part, one in zip(w.down, sizes, strict=True)),
        middle=None if w.middle is None else blocks(w.middle, sizes[-1]),
        up=tuple(up(part, i) for part, i in zip(w.up, reversed(range(len(sizes))), strict=True)),
    )
