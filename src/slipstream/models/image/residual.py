"""Convolutions and residual blocks of UNets and autoencoders, with their plans under diffusers' names."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
from jax import Array

from slipstream.kernels.convolution import (
    SAME,
    PackedWinograd,
    Pad,
    Winograd,
    conv,
    packed,
    plain,
    tile_for,
    transformed,
    upsample_conv,
)
from slipstream.kernels.low_rank import LowRank
from slipstream.kernels.native import library
from slipstream.kernels.norm import group_norm
from slipstream.kernels.ragged import Kernels
from slipstream.models.image.blocks import Linear, linear, plan_layer_norm, plan_linear
from slipstream.spec.param import Axis, param


@dataclass(frozen=True)
class Norms:
    """What is the same of all group norms of a part of a model."""

    groups: int
    eps: float

    def __call__(self, x: Array, w: Linear, kernels: Kernels, *, silu: bool = False) -> Array:
        """`x` [b, ..., c] normed; through a SiLU where `silu` says so."""
        assert w.bias is not None
        return group_norm(x, w.weight, w.bias, self.eps, self.groups, silu=silu, kernels=kernels)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Resnet:
    """Two convolutions and what goes past them: `shortcut` where the number of channels changes, else None.

    `time`: what a vector of the picture (its time) adds between the two; None where there is none.
    """

    norm1: Linear
    conv1: Linear
    time: Linear | None
    norm2: Linear
    conv2: Linear
    shortcut: Linear | None


def plan_conv(name: str, inputs: int | Axis, outputs: int | Axis, size: int = 3) -> Linear:
    """The plan of a convolution of `size` by `size` points: weight [y, x, i, o]."""
    rows, columns = Axis("rows", "y", size), Axis("columns", "x", size)
    given = Axis("inputs", "i", inputs) if isinstance(inputs, int) else inputs
    kept = Axis("outputs", "o", outputs) if isinstance(outputs, int) else outputs
    contract = ("rows", "columns", given.role)
    return Linear(
        param(rows | columns | given | kept, name + ".weight", "o i y x -> y x i o", contract=contract),
        param(kept, name + ".bias", init="zeros"),
    )


def plan_pointwise(inputs: Axis, outputs: Axis, name: str) -> Linear:
    """The plan of a convolution of one point, which is a product of channels."""
    layout = f"{outputs.letter} {inputs.letter} 1 1 -> {inputs.letter} {outputs.letter}"
    return Linear(
        param(inputs | outputs, name + ".weight", layout, contract=(inputs.role,)),
        param(outputs, name + ".bias", init="zeros"),
    )


def plan_resnet(at: str, inputs: int, outputs: int, time: int | None = None) -> Resnet:
    """The plan of a residual block whose names begin with `at`; `time` is the size of the vector of times.

    Channels between the two convolutions have a role of their own: several devices have a part of them each.
    """
    given, kept = Axis("inputs", "i", inputs), Axis("outputs", "o", outputs)
    made, read = Axis("inner", "o", outputs), Axis("inner", "i", outputs)
    return Resnet(
        norm1=plan_layer_norm(given, at + "norm1"),
        conv1=plan_conv(at + "conv1", inputs, made),
        time=None if time is None else plan_linear(Axis("vector", "d", time), made, at + "time_emb_proj"),
        norm2=plan_layer_norm(made, at + "norm2"),
        conv2=plan_conv(at + "conv2", read, outputs),
        shortcut=None if inputs == outputs else plan_pointwise(given, kept, at + "conv_shortcut"),
    )


def resnet(w: Resnet, norms: Norms, x: Array, time: Array | None, kernels: Kernels) -> Array:
    """`x` [b, y, x, i] as [b, y, x, o]; `time` [b, t] after its SiLU."""
    added = w.conv1.bias
    if w.time is not None and time is not None:
        assert added is not None
        added = added + linear("td,do->to", time, w.time)
    y = conv(norms(x, w.norm1, kernels, silu=True), w.conv1.weight, added, kernels=kernels)
    y = conv(norms(y, w.norm2, kernels, silu=True), w.conv2.weight, w.conv2.bias, kernels=kernels)
    return y + (x if w.shortcut is None else pointwise(w.shortcut, x))


def pointwise(w: Linear, x: Array) -> Array:
    """A product of channels at each point: [b, y, x, i] as [b, y, x, o]."""
    return linear("ti,io->to", x, w)


def halve(w: Linear, x: Array, pad: Pad = SAME, kernels: Kernels = "reference") -> Array:
    """Every second row and column of a convolution."""
    return conv(x, w.weight, w.bias, stride=2, pad=pad, kernels=kernels)


def double(w: Linear, x: Array, size: tuple[int, int] | None, kernels: Kernels) -> Array:
    """A convolution of the picture with each row and column twice, without those that pass `size`."""
    return upsample_conv(x, w.weight, w.bias, size=size, kernels=kernels)


def prepare_resnet(w: Resnet, size: tuple[int, int]) -> Resnet:
    """The same block with its convolutions as a CPU is fastest with for pictures of `size` rows and columns."""
    return replace(w, conv1=prepare_conv(w.conv1, size), conv2=prepare_conv(w.conv2, size))


def prepare_conv(w: Linear, size: tuple[int, int]) -> Linear:
    """A convolution with stride 1 in Winograd's domain where that is the fastest, for results of `size`."""
    weight = w.weight
    if isinstance(weight, LowRank):
        base = prepare_conv(replace(w, weight=weight.base), size).weight
        return replace(w, weight=replace(weight, base=base))
    if isinstance(weight, Winograd | PackedWinograd):
        return w
    tile = tile_for(size, plain(weight).shape)
    if tile is None:
        return w
    form = _transformed if library.library() is None else _packed
    return replace(w, weight=form(plain(weight), tile))


def prepare_double(w: Linear | None, size: tuple[int, int]) -> Linear | None:
    """The convolution behind a doubling to `size`: XLA computes it as four small ones, the native kernel as one."""
    return w if w is None or library.library() is None else prepare_conv(w, size)


_transformed = jax.jit(transformed, static_argnums=1)
_packed = jax.jit(packed, static_argnums=1)
