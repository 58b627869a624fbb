"""The autoencoder between pictures and latents an eighth of their size: of 4 channels for SDXL, of 16 for Flux.

Rombach et al. 2021 (arXiv:2112.10752); diffusers' AutoencoderKL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from slipstream.errors import CheckpointError, UnsupportedModel
from slipstream.kernels.batched_attention import attend_batch
from slipstream.kernels.convolution import Pad, conv
from slipstream.kernels.ragged import Kernels
from slipstream.models.image.blocks import Linear, linear, linears, plan_layer_norm, plan_linear
from slipstream.models.image.residual import (
    Norms,
    Resnet,
    double,
    halve,
    plan_conv,
    plan_pointwise,
    plan_resnet,
    pointwise,
    prepare_double,
    prepare_resnet,
    resnet,
)
from slipstream.models.keys import Keys
from slipstream.spec.param import Axis

NORM_EPS = 1e-6
LEAST, MOST = -30.0, 20.0
"""Bounds of the logarithm of a latent's variance."""

HALVED: Pad = ((0, 1), (0, 1))
"""Zeros around a picture that is halved: behind it alone."""

METADATA = ("_class_name", "_diffusers_version", "sample_size")

OLD_NAMES = (
    (r"\.attentions\.0\.query\.", ".attentions.0.to_q."),
    (r"\.attentions\.0\.key\.", ".attentions.0.to_k."),
    (r"\.attentions\.0\.value\.", ".attentions.0.to_v."),
    (r"\.attentions\.0\.proj_attn\.", ".attentions.0.to_out.0."),
)
"""Patterns in names that checkpoints written before diffusers 0.12 have, and what stands there today."""


@dataclass(frozen=True)
class Config:
    """Sizes and switches. `channels` begins at the picture's resolution, which is halved between each two of them.

    What a denoiser sees is (latent - `shift`) * `scaling`. `quantized`, `dequantized`: whether latents go through one
    more product after encoding, and before decoding. `attends`: whether the middles have attention. `upcast`: whether
    the published weights overflow float16, so that it must compute in float32 (or bfloat16).
    """

    in_channels: int
    out_channels: int
    latent_channels: int
    channels: tuple[int, ...]
    layers: int
    groups: int
    scaling: float
    shift: float
    quantized: bool
    dequantized: bool
    attends: bool
    upcast: bool

    @property
    def factor(self) -> int:
        """Points of a picture's side to one of its latents'."""
        return 1 << (len(self.channels) - 1)

    @property
    def norms(self) -> Norms:
        """Of all blocks."""
        return Norms(self.groups, NORM_EPS)

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> Config:
        """From config.json, whose defaults are diffusers'. Raises an error of `errors` that names the key."""
        keys = Keys(config, "autoencoder")
        down = keys.strings("down_block_types") or ("DownEncoderBlock2D",)
        up = keys.strings("up_block_types") or ("UpDecoderBlock2D",)
        for name in {*down, *up} - {"DownEncoderBlock2D", "UpDecoderBlock2D"}:
            raise UnsupportedModel(f"config.json has a block {name!r}, which Slipstream's autoencoder has not")
        if len(up) != len(down):
            raise CheckpointError(f"config.json has {len(down)} down_block_types and {len(up)} up_block_types")
        channels, groups = keys.counts("block_out_channels", len(down), 64), keys.size("norm_num_groups", 32)
        if any(width % groups for width in channels):
            raise CheckpointError(f"config.json: channels {list(channels)} are no {groups} groups")
        if keys.take("act_fn", str, "silu") not in ("silu", "swish"):
            raise UnsupportedModel("config.json sets an act_fn other than 'silu', which Slipstream's autoencoder has")
        built = cls(
            in_channels=keys.size("in_channels", 3),
            out_channels=keys.size("out_channels", 3),
            latent_channels=keys.size("latent_channels", 4),
            channels=channels,
            layers=keys.size("layers_per_block", 1),
            groups=groups,
            scaling=keys.positive("scaling_factor", 0.18215),
            shift=keys.take("shift_factor", float, 0.0),
            quantized=keys.take("use_quant_conv", bool, True),
            dequantized=keys.take("use_post_quant_conv", bool, True),
            attends=keys.take("mid_block_add_attention", bool, True),
            upcast=keys.take("force_upcast", bool, True),
        )
        keys.finish(METADATA)
        return built


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Attention:
    """Attention of one head among all points."""

    norm: Linear
    q: Linear
    k: Linear
    v: Linear
    out: Linear


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Half:
    """The encoder or the decoder. `levels`: residual blocks of each resolution; `samplers`: what changes it."""

    conv_in: Linear
    levels: tuple[tuple[Resnet, ...], ...]
    samplers: tuple[Linear | None, ...]
    first: Resnet
    attention: Attention | None
    second: Resnet
    norm: Linear
    conv_out: Linear


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weights:
    """All weights; `quantize` and `dequantize` None where the config says so."""

    encoder: Half
    decoder: Half
    quantize: Linear | None
    dequantize: Linear | None


def plan(c: Config) -> Weights:
    """The weights' tree with a `Param` at each leaf."""
    z, deepest = c.latent_channels, c.channels[-1]
    return Weights(
        encoder=_plan_half(c, "encoder.", (c.in_channels, *c.channels), deepest, c.layers, 2 * z),
        decoder=_plan_half(c, "decoder.", (z, *reversed(c.channels)), deepest, c.layers + 1, c.out_channels),
        quantize=plan_pointwise(Axis("inputs", "i", 2 * z), Axis("outputs", "o", 2 * z), "quant_conv")
        if c.quantized
        else None,
        dequantize=plan_pointwise(Axis("inputs", "i", z), Axis("outputs", "o", z), "post_quant_conv")
        if c.dequantized
        else None,
    )


def _plan_half(c: Config, at: str, widths: Sequence[int], deepest: int, layers: int, outputs: int) -> Half:
    """`widths`: of what comes in, and then of each level in its order."""
    names = ("down_blocks", "downsamplers") if at == "encoder." else ("up_blocks", "upsamplers")
    levels, samplers = [], []
    inputs = widths[1]
    for i, width in enumerate(widths[1:]):
        level = f"{at}{names[0]}.{i}."
        given = (inputs, *(width,) * (layers - 1))
        levels.append(tuple(plan_resnet(f"{level}resnets.{j}.", one, width) for j, one in enumerate(given)))
        last = i == len(c.channels) - 1
        samplers.append(None if last else plan_conv(f"{level}{names[1]}.0.conv", width, width))
        inputs = width
    middle = at + "mid_block."
    return Half(
        conv_in=plan_conv(at + "conv_in", widths[0], widths[1]),
        levels=tuple(levels),
        samplers=tuple(samplers),
        first=plan_resnet(middle + "resnets.0.", deepest, deepest),
        attention=_plan_attention(middle + "attentions.0.", deepest) if c.attends else None,
        second=plan_resnet(middle + "resnets.1.", deepest, deepest),
        norm=plan_layer_norm(Axis("inputs", "i", widths[-1]), at + "conv_norm_out"),
        conv_out=plan_conv(at + "conv_out", widths[-1], outputs),
    )


def _plan_attention(at: str, width: int) -> Attention:
    D, H = Axis("embed", "d", width), Axis("head", "h", width)
    q, k, v = (plan_linear(D, H, f"{at}to_{letter}") for letter in "qkv")
    return Attention(plan_layer_norm(D, at + "group_norm"), q, k, v, plan_linear(H, D, at + "to_out.0"))


def encode(w: Weights, c: Config, images: Array, *, kernels: Kernels = "reference") -> tuple[Array, Array]:
    """Mean and logarithm of the variance [b, y, x, z] of the latents of `images` [b, Y, X, 3] in -1..1.

    Sides are multiples of `c.factor`. Latents are raw: see `to_latent`.
    """
    x = conv(images, w.encoder.conv_in.weight, w.encoder.conv_in.bias, kernels=kernels)
    for level, sampler in zip(w.encoder.levels, w.encoder.samplers, strict=True):
        for block in level:
            x = resnet(block, c.norms, x, None, kernels)
        if sampler is not None:
            x = halve(sampler, x, HALVED, kernels)
    x = _ended(w.encoder, c, _middle(w.encoder, c, x, kernels), kernels)
    x = x if w.quantize is None else pointwise(w.quantize, x)
    mean, log_variance = jnp.split(x, 2, axis=-1)
    return mean, jnp.clip(log_variance, LEAST, MOST)


def decode(w: Weights, c: Config, latents: Array, *, kernels: Kernels = "reference") -> Array:
    """Pictures [b, Y, X, 3], about -1..1, of raw latents [b, y, x, z]: see `from_latent`."""
    x = latents if w.dequantize is None else pointwise(w.dequantize, latents)
    x = conv(x, w.decoder.conv_in.weight, w.decoder.conv_in.bias, kernels=kernels)
    x = _middle(w.decoder, c, x, kernels)
    for level, sampler in zip(w.decoder.levels, w.decoder.samplers, strict=True):
        for block in level:
            x = resnet(block, c.norms, x, None, kernels)
        if sampler is not None:
            x = double(sampler, x, None, kernels)
    return _ended(w.decoder, c, x, kernels)


def to_latent(c: Config, latents: Array) -> Array:
    """Raw latents as a denoiser sees them."""
    return (latents - c.shift) * c.scaling


def from_latent(c: Config, latents: Array) -> Array:
    """A denoiser's latents as the decoder takes them."""
    return latents / c.scaling + c.shift


def decode_tiled(
    w: Weights, c: Config, latents: Array, *, tile: int = 64, overlap: int = 16, kernels: Kernels = "reference"
) -> Array:
    """`decode` in tiles of `tile` by `tile` latents, one after the other: memory is that of one tile and the result.

    Neighbouring tiles share at least `overlap` latents and fade into one another there. What a tile's norms and its
    attention see of the rest is missing, so colours may differ a little from those of `decode`. All tiles have one
    shape; a side that is no longer than a tile is not cut.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"tiles of {tile} latents cannot share {overlap}")
    b, *size, _ = latents.shape
    sides = [min(tile, side) for side in size]
    starts = [_starts(side, part, overlap) for side, part in zip(size, sides, strict=True)]
    if max(map(len, starts)) == 1:
        return decode(w, c, latents, kernels=kernels)
    f = c.factor
    shares = [_shares(side * f, part * f, first * f) for side, part, first in zip(size, sides, starts, strict=True)]
    places = np.stack(np.meshgrid(*(np.arange(len(one)) for one in starts), indexing="ij"), -1).reshape(-1, 2)
    firsts = np.stack([starts[axis][places[:, axis]] for axis in range(2)], axis=-1)
    rows, columns = (jnp.asarray(shares[axis][places[:, axis]]) for axis in range(2))

    def one(whole: Array, at: tuple[Array, Array, Array]) -> tuple[Array, None]:
        (y, x), down, across = at
        part = lax.dynamic_slice(latents, (0, y, x, 0), (b, *sides, latents.shape[-1]))
        picture = decode(w, c, part, kernels=kernels).astype(jnp.float32) * (down[:, None] * across)[..., None]
        corner = (0, y * f, x * f, 0)
        return lax.dynamic_update_slice(whole, lax.dynamic_slice(whole, corner, picture.shape) + picture, corner), None

    empty = jnp.zeros((b, size[0] * f, size[1] * f, c.out_channels), jnp.float32)
    whole, _ = lax.scan(one, empty, (jnp.asarray(firsts, jnp.int32), rows, columns))
    return whole.astype(latents.dtype)


def _starts(side: int, tile: int, overlap: int) -> np.ndarray:
    """Where tiles begin, evenly spread: as few as share `overlap` with each other."""
    count = 1 if side <= tile else -(-(side - overlap) // (tile - overlap))
    return np.round(np.linspace(0, side - tile, count)).astype(np.int64)


def _shares(side: int, tile: int, starts: np.ndarray) -> np.ndarray:
    """Each tile's share in its points [tiles, tile], which rises and falls evenly where tiles overlap; sums are 1."""
    shares = np.zeros((len(starts), side))
    for i, start in enumerate(starts):
        share = np.ones(tile)
        for j, begins in ((i - 1, True), (i + 1, False)):
            if 0 <= j < len(starts):
                shared = tile - abs(int(starts[j]) - int(start))
                ramp = (np.arange(tile) + 0.5) / shared
                share = np.minimum(share, ramp if begins else ramp[::-1])
        shares[i, start : start + tile] = share
    shares /= shares.sum(axis=0)
    return np.stack([row[start : start + tile] for row, start in zip(shares, starts, strict=True)]).astype(np.float32)


def prepare(w: Weights, c: Config, size: tuple[int, int]) -> Weights:
    """The weights with convolutions in the form that a CPU is fastest with for latents of `size` rows and columns."""
    count = len(c.channels)

    def half(w: Half, scales: Sequence[int]) -> Half:
        sizes = [(size[0] << scale, size[1] << scale) for scale in scales]
        levels = [tuple(prepare_resnet(one, at) for one in level) for level, at in zip(w.levels, sizes, strict=True)]
        first, second = prepare_resnet(w.first, size), prepare_resnet(w.second, size)
        return replace(w, levels=tuple(levels), first=first, second=second)

    decoder = half(w.decoder, range(count))
    doubled = [(size[0] << scale, size[1] << scale) for scale in range(1, count + 1)]
    samplers = tuple(prepare_double(one, at) for one, at in zip(decoder.samplers, doubled, strict=True))
    encoder = half(w.encoder, range(count)[::-1])
    return replace(w, encoder=encoder, decoder=replace(decoder, samplers=samplers))


def _middle(w: Half, c: Config, x: Array, kernels: Kernels) -> Array:
    x = resnet(w.first, c.norms, x, None, kernels)
    if w.attention is not None:
        x = x + _attend(w.attention, c, x, kernels)
    return resnet(w.second, c.norms, x, None, kernels)


def _attend(w: Attention, c: Config, x: Array, kernels: Kernels) -> Array:
    b, *_, width = x.shape
    h = c.norms(x, w.norm, kernels).reshape(b, -1, width)
    q, k, v = (y[:, :, None] for y in linears(("td,dh->th",) * 3, h, (w.q, w.k, w.v)))
    y = attend_batch(q, k, v, scale=width**-0.5, kernels=kernels)
    return linear("th,hd->td", y[:, :, 0], w.out).reshape(x.shape)


def _ended(w: Half, c: Config, x: Array, kernels: Kernels) -> Array:
    x = c.norms(x, w.norm, kernels, silu=True)
    return conv(x, w.conv_out.weight, w.conv_out.bias, kernels=kernels)
