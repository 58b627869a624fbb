"""Convolutions of pictures [b, y, x, c], and of pictures that are doubled first.

On a CPU a 3x3 convolution is computed in the transformed domain of Winograd (Lavin and Gray 2015, arXiv:1509.09308) as
16 or 36 batched products: by one native kernel, for weights that a caller keeps in the form that it reads
(`PackedWinograd`), or by XLA, whose form is kept (`Winograd`) or made in each call. Without the native kernel one
behind a doubling is four convolutions of 2x2 points, one for each parity of the result's row and column.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from slipstream.kernels.low_rank import LowRank
from slipstream.kernels.native.picture import convolve_points, pack_points
from slipstream.kernels.ragged import Kernels

Pad = tuple[tuple[int, int], tuple[int, int]]
"""Zeros before and after the rows, and the columns."""

Tile = Literal[2, 4]

SAME: Pad = ((1, 1), (1, 1))

FEWEST_CHANNELS = 64
"""With fewer inputs or outputs the transforms take longer than what they save."""

TILES: tuple[tuple[int, Tile], ...] = ((32, 4), (16, 2))
"""From so many rows and columns on tiles of so many results are the fastest; smaller pictures have none."""


@dataclass(frozen=True)
class Transform:
    """Winograd's matrices for tiles of `tile` by `tile` results of a 3x3 convolution, with `tile + 2` points a side.

    `inputs` [points, points], `weights` [points, 3] and `results` [tile, points].
    """

    inputs: np.ndarray
    weights: np.ndarray
    results: np.ndarray


def _matrix(*rows: list[float]) -> np.ndarray:
    return np.asarray(rows, np.float32)


TRANSFORMS: dict[int, Transform] = {
    2: Transform(
        _matrix([1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]),
        _matrix([1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]),
        _matrix([1, 1, 1, 0], [0, 1, -1, -1]),
    ),
    4: Transform(
        _matrix(
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ),
        _matrix(
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ),
        _matrix([1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]),
    ),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Winograd:
    """A 3x3 convolution's weight in the transformed domain, for stride 1: `values` float32 [points * points, i, o]."""

    values: Array
    tile: Tile = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedWinograd:
    """The same for the native kernel: `values` float32 as `pack_points` makes them, for `outputs` channels."""

    values: Array
    tile: Tile = field(metadata={"static": True})
    outputs: int = field(metadata={"static": True})


@singledispatch
def plain(leaf: Any) -> Array:
    """A convolution's weight [y, x, i, o] as an array. Leaf types that are none register how they become one."""
    array: Array = leaf
    return array


@singledispatch
def convolved(leaf: Any, x: Array, compute: Callable[[Array, Any], Array]) -> Array:
    """`compute(x, leaf)`; leaf types that say where its input and its result lie register a rule."""
    return compute(x, leaf)


def conv(
    x: Array, weight: Any, bias: Array | None, *, stride: int = 1, pad: Pad = SAME, kernels: Kernels = "reference"
) -> Array:
    """The convolution of x [b, y, x, i] with `weight` [y, x, i, o] and `bias` [o]: [b, y', x', o] in x's type.

    `weight` may be `Winograd` or `PackedWinograd`, for stride 1 and SAME, or `LowRank`; `bias` also [b, o]: one a
    picture. Sums are float32; float32 products are exact float32.
    """
    if isinstance(weight, LowRank):
        y = conv(x, weight.base, bias, stride=stride, pad=pad, kernels=kernels)
        if weight.scales is None:
            return y
        return y + weight.opened(conv(x, weight.down, None, stride=stride, pad=pad, kernels=kernels))
    if isinstance(weight, Winograd | PackedWinograd) and (stride != 1 or pad != SAME):
        raise ValueError(f"a weight in Winograd's domain is for stride 1 and SAME, not {stride} and {pad}")
    if isinstance(weight, PackedWinograd):
        return _convolve_packed(x, weight, bias, doubled=False)
    if isinstance(weight, Winograd):
        y = convolve_winograd(x, weight)
    else:
        y = convolved(weight, x, lambda x, leaf: IMPLEMENTATIONS[kernels](x, plain(leaf), stride, pad))
    return y if bias is None else y + (bias if bias.ndim == 1 else bias[:, None, None])


def upsample_conv(
    x: Array, weight: Any, bias: Array | None, *, size: tuple[int, int] | None = None, kernels: Kernels = "reference"
) -> Array:
    """`conv` with a 3x3 weight of x with each row and column doubled; `size` cuts those off again that are too many."""
    if isinstance(weight, LowRank):
        y = upsample_conv(x, weight.base, bias, size=size, kernels=kernels)
        if weight.scales is None:
            return y
        return y + weight.opened(upsample_conv(x, weight.down, None, size=size, kernels=kernels))
    rows, columns = size or (2 * x.shape[1], 2 * x.shape[2])
    whole = (rows, columns) == (2 * x.shape[1], 2 * x.shape[2])
    if whole and isinstance(weight, PackedWinograd):
        return _convolve_packed(x, weight, bias, doubled=True)
    if not whole or kernels not in BY_PHASES:
        doubled = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)[:, :rows, :columns]
        return conv(doubled, weight, bias, kernels=kernels)
    y = convolve_phases(x, summed(plain(weight)))
    return y if bias is None else y + bias


def convolve(x: Array, weight: Array, stride: int, pad: Pad) -> Array:
    """XLA's own."""
    return lax.conv_general_dilated(
        x,
        weight,
        (stride, stride),
        pad,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST if x.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    ).astype(x.dtype)


def convolve_by_size(x: Array, weight: Array, stride: int, pad: Pad) -> Array:
    """Winograd's where it is the faster one. Its sums cancel: shorter floats than float32 would lose most of theirs."""
    fits = stride == 1 and pad == SAME and x.dtype == jnp.float32
    tile = tile_for(x.shape[1:3], weight.shape) if fits else None
    return convolve(x, weight, stride, pad) if tile is None else convolve_winograd(x, transformed(weight, tile))


IMPLEMENTATIONS: dict[Kernels, Callable[[Array, Array, int, Pad], Array]] = {
    "reference": convolve,
    "cpu": convolve_by_size,
    "pallas_tpu": convolve,
    "pallas_gpu": convolve,
    "cudnn": convolve,
}
BY_PHASES: tuple[Kernels, ...] = ("cpu",)
"""Where a doubling and the convolution behind it are four small ones."""


def tile_for(size: tuple[int, ...], weight: tuple[int, ...]) -> Tile | None:
    """Winograd's tile for a picture of `size` rows and columns and a weight's shape [y, x, i, o]; None: without."""
    if weight[:2] != (3, 3) or min(weight[2:]) < FEWEST_CHANNELS:
        return None
    return next((tile for least, tile in TILES if min(size) >= least), None)


def transformed(weight: Array, tile: Tile) -> Winograd:
    """A 3x3 weight [y, x, i, o] in the transformed domain, in float32."""
    flat = weight.astype(jnp.float32).reshape(9, *weight.shape[2:])
    return Winograd(_product("pk,kio->pio", _both(TRANSFORMS[tile].weights), flat), tile)


def packed(weight: Array, tile: Tile) -> PackedWinograd:
    """A 3x3 weight [y, x, i, o] in the transformed domain, as the native kernel reads it."""
    return PackedWinograd(pack_points(transformed(weight, tile).values), tile, weight.shape[-1])


def _convolve_packed(x: Array, weight: PackedWinograd, bias: Array | None, *, doubled: bool) -> Array:
    added = jnp.zeros(weight.outputs, jnp.float32) if bias is None else bias
    each = jnp.broadcast_to(added, (x.shape[0], weight.outputs))
    return convolve_points(x, weight.values, each, tile=weight.tile, doubled=doubled)


def convolve_winograd(x: Array, weight: Winograd) -> Array:
    """The convolution with stride 1 and SAME, as a batch of float32 products: one for each point of a transformed tile.

    The two transforms of a tile, along its rows and its columns, are one product with their Kronecker product: that is
    more work than sums of slices, and less time. The barriers keep XLA from gathering points inside of products.
    """
    tile, outputs = weight.tile, weight.values.shape[-1]
    matrices, points = TRANSFORMS[tile], range(tile + 2)
    b, height, width, inputs = x.shape
    down, across = -(-height // tile), -(-width // tile)
    after = (down * tile + 1 - height, across * tile + 1 - width)
    wide = jnp.pad(x.astype(jnp.float32), ((0, 0), (1, after[0]), (1, after[1]), (0, 0)))
    gathered = [wide[:, i::tile, j::tile][:, :down, :across].reshape(-1, inputs) for i in points for j in points]
    tiles = _product("pq,qti->pti", _both(matrices.inputs), lax.optimization_barrier(jnp.stack(gathered)))
    results = _product("rp,pto->rto", _both(matrices.results), _product("pti,pio->pto", tiles, weight.values))
    whole = lax.optimization_barrier(results).reshape(tile, tile, b, down, across, outputs)
    whole = jnp.transpose(whole, (2, 3, 0, 4, 1, 5)).reshape(b, down * tile, across * tile, outputs)
    return whole[:, :height, :width].astype(x.dtype)


def _product(eq: str, x: Array, y: Array) -> Array:
    return jnp.einsum(eq, x, y, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _both(matrix: np.ndarray) -> Array:
    """A transform along rows and columns, of all points of a tile as one axis."""
    return jnp.asarray(np.kron(matrix, matrix))


def summed(weight: Array) -> Array:
    """A 3x3 weight [y, x, i, o] as those of four phases: [row's parity, column's, 2, 2, i, o].

    Of three neighbouring rows of a doubled picture two are the same: which two depends on the parity of the result's.
    """

    def halves(weights: list[Array]) -> Array:
        first, second, third = weights
        return jnp.stack([jnp.stack([first, second + third]), jnp.stack([first + second, third])])

    rows = halves(list(weight))  # [parity, 2, x, i, o]
    both = halves([rows[:, :, x] for x in range(3)])  # [parity of column, 2, parity of row, 2, i, o]
    return jnp.transpose(both, (2, 0, 3, 1, 4, 5))


def convolve_phases(x: Array, weight: Array) -> Array:
    """The convolution with SAME of the doubled x, with `summed` weights: each parity is a 2x2 one of x itself."""
    b, height, width, _ = x.shape
    rows = []
    for row in range(2):
        columns = [convolve(x, weight[row, column], 1, ((1 - row, row), (1 - column, column))) for column in range(2)]
        rows.append(jnp.stack(columns, axis=3))
    return jnp.stack(rows, axis=2).reshape(b, 2 * height, 2 * width, -1)
