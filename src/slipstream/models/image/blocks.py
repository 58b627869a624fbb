"""The mathematics that image models share, with the plans of its weights: products with a bias, embeddings of numbers.

Tensors of a checkpoint are named as diffusers and transformers name them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from slipstream.kernels.matmul import dots
from slipstream.kernels.native import library
from slipstream.kernels.native.picture import gelu_native
from slipstream.kernels.norm import layer_norm
from slipstream.kernels.ragged import Kernels
from slipstream.models.llm.weights import Leaf
from slipstream.spec.param import Axis, Dims, Part, param

LONGEST_PERIOD = 10_000
"""Of the waves in `sinusoid`, as a number of radians."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Linear:
    """A product's weight and what is added to it; or a layer norm's."""

    weight: Leaf
    bias: Leaf | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Embedder:
    """Two products with a SiLU between them."""

    up: Linear
    down: Linear


def plan_linear(
    inputs: Axis | Dims, outputs: Axis | Dims, name: str, *, bias: bool = True, part: Part | None = None
) -> Linear:
    """The plan of a product, stored as PyTorch does: [outputs, inputs], each axis the product of the axes given here.

    The weight is `inputs | outputs`. `part`: of which axis the checkpoint's tensor holds more than this weight.
    """
    given, kept = _dims(inputs), _dims(outputs)
    dims = given | kept
    layout = f"{_grouped(kept)} {_grouped(given)} -> {' '.join(axis.letter for axis in dims.axes)}"
    roles = tuple(axis.role for axis in given.axes)
    weight = param(dims, name + ".weight", layout, contract=roles, part=part)
    if not bias:
        return Linear(weight, None)
    flat = f"{_grouped(kept)} -> {' '.join(axis.letter for axis in kept.axes)}" if len(kept.axes) > 1 else None
    cut = part if part and part.letter in kept.sizes else None
    return Linear(weight, param(kept, name + ".bias", flat, init="zeros", part=cut))


def plan_layer_norm(axis: Axis, name: str) -> Linear:
    """The plan of a layer norm with weight and bias."""
    return Linear(param(axis, name + ".weight", init="ones"), param(axis, name + ".bias", init="zeros"))


def plan_embedder(inputs: Axis, outputs: Axis, name: str) -> Embedder:
    """The plan of an embedder, whose products diffusers calls linear_1 and linear_2; axes of letters c and d."""
    E = Axis("mlp", "e", outputs.size)
    return Embedder(plan_linear(inputs, E, name + ".linear_1"), plan_linear(E, outputs, name + ".linear_2"))


def linear(eq: str, x: Array, w: Linear) -> Array:
    """`linears` of one."""
    return linears([eq], x, [w])[0]


def linears(eqs: Sequence[str], x: Array, ws: Sequence[Linear]) -> list[Array]:
    """Products of `x` with several weights, and their biases: `linears(["td,dnh->tnh"], x, [w.q])` for x [b, t, d].

    In each equation one letter stands for all of the axes of `x` before those that are summed over: every kind of leaf
    multiplies rows.
    """
    summed = len(eqs[0].split(",")[0]) - 1
    before, rest = x.shape[: x.ndim - summed], x.shape[x.ndim - summed :]
    ys = dots(eqs, x.reshape(-1, *rest), [w.weight for w in ws])
    added = (y if w.bias is None else y + w.bias for y, w in zip(ys, ws, strict=True))
    return [y.reshape(*before, *y.shape[1:]) for y in added]


def opened(x: Array, w: Linear, kernels: Kernels, *, tanh: bool, times: Linear | None = None) -> Array:
    """A feed-forward's inside: the GELU of the product of x [b, t, d] with `w`, times that with `times` where given.

    `tanh`: by the formula with a hyperbolic tangent. On a CPU biases, GELU and gate are one native kernel.
    """
    ws = (w,) if times is None else (w, times)
    if kernels != "cpu" or library.library() is None:
        y, *others = linears(("td,df->tf",) * len(ws), x, ws)
        y = jax.nn.gelu(y, approximate=tanh)
        return y * others[0] if others else y
    bare = linears(("td,df->tf",) * len(ws), x, [replace(one, bias=None) for one in ws])
    biases = [jnp.zeros(y.shape[-1]) if one.bias is None else one.bias for one, y in zip(ws, bare, strict=True)]
    other = (None, None) if times is None else (bare[1], biases[1])
    return gelu_native(bare[0], biases[0], other[0], other[1], tanh)


def normed(w: Linear, x: Array, eps: float) -> Array:
    """A layer norm over the last axis."""
    assert w.bias is not None
    return layer_norm(x, w.weight, w.bias, eps)


def modulated(x: Array, scale: Array, shift: Array, eps: float) -> Array:
    """A layer norm of `x` [b, t, d] without weights of its own, times 1 + `scale` plus `shift`, both [b, d].

    Peebles and Xie 2022 (arXiv:2212.09748).
    """
    return layer_norm(x, 1 + scale.astype(jnp.float32)[:, None], shift[:, None], eps)


def embedded(w: Embedder, x: Array) -> Array:
    """An embedder of `x` [b, c]: [b, d]."""
    return linear("te,ed->td", jax.nn.silu(linear("tc,ce->te", x, w.up)), w.down)


def sinusoid(x: Array, size: int) -> Array:
    """Numbers [...] as waves, float32 [..., size]: cosines of falling frequencies, then sines (arXiv:1706.03762).

    `size` must be even.
    """
    # Frequencies are rounded as diffusers rounds them: a guidance of 3.5 is 3,500 here, and makes 4e-4 radians of an
    # error of one in the last place.
    exponents = np.float32(-log(LONGEST_PERIOD)) * np.arange(size // 2, dtype=np.float32) / np.float32(size // 2)
    angles = x.astype(jnp.float32)[..., None] * np.exp(exponents)
    return jnp.concatenate((jnp.cos(angles), jnp.sin(angles)), axis=-1)


def _dims(axes: Axis | Dims) -> Dims:
    return axes if isinstance(axes, Dims) else Dims((axes,))


def _grouped(dims: Dims) -> str:
    """The axes as one of the checkpoint's: "d", or "(n h)"."""
    letters = " ".join(axis.letter for axis in dims.axes)
    return letters if len(dims.axes) == 1 else f"({letters})"
