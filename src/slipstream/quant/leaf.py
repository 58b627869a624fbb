"""A quantized weight as a leaf of the tree of weights, and what a plan's `Param` makes of a stored tensor.

The leaf has the weight's own axes, so a forward, a sharding rule and an equation speak of it as of a plain array. Its
scales have the same axes, each as long as the weight has blocks along it: 1 where one scale serves all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from slipstream.quant.scaled import IN_BYTES, NUMBERS, regrouped, split_block
from slipstream.spec.param import Param
from slipstream.spec.source import Number, Rounding, Scaled, Stored


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantized:
    """(values - zeros) * scales, of a weight with the axes of `Param.shape`.

    `values`: int4, int8, float8_e4m3fn or float4_e2m1fn, of the weight's shape. `scales`: floats; an axis of s indices
    has a divisor of s of them, each for as many indices in a row. `zeros`: int8, of the scales' shape, or None.
    `rounding`: what inputs of products are rounded to, with a scale for each token; None: they stay as they are.
    `dtype`: of the activations that the weight is for, which is what its rows have where it is a table.
    """

    values: Array
    scales: Array
    zeros: Array | None
    rounding: Rounding | None = field(metadata={"static": True})
    dtype: np.dtype = field(metadata={"static": True})


def dequantize(leaf: Quantized, dtype: np.dtype) -> Array:
    """The weight as a plain array, computed in float32 and rounded once. XLA fuses it into the product with it."""
    values = leaf.values.astype(jnp.float32)
    if leaf.zeros is not None:
        values = values - spread(leaf.zeros.astype(jnp.float32), values.shape)
    return (values * spread(leaf.scales.astype(jnp.float32), values.shape)).astype(dtype)


def spread(scales: Array, shape: Sequence[int]) -> Array:
    """Scales of blocks for each index of an array of `shape`."""
    split = [(count, size // count) for count, size in zip(scales.shape, shape, strict=True)]
    within = scales.reshape([n for count, _ in split for n in (count, 1)])
    return jnp.broadcast_to(within, [n for pair in split for n in pair]).reshape(shape)


class Assembly(Protocol):
    """An array that is put together on its devices, tensor by tensor."""

    def add(self, at: tuple[int, ...], tensor: np.ndarray) -> None:
        """Put a tensor in its place along the stacked axes, cast to the array's dtype."""

    def finish(self) -> Array:
        """The array."""


@dataclass(frozen=True)
class Form:
    """The leaf that a parameter's stored tensors make, known before any data is read.

    `narrow`: numbers of 4 bits take 4 bits on the device, else a byte.
    """

    param: Param
    number: Number
    scale_shape: tuple[int, ...]
    scale_type: np.dtype
    has_zeros: bool
    rounding: Rounding | None
    dtype: np.dtype
    narrow: bool

    @property
    def number_type(self) -> np.dtype:
        """The values' dtype."""
        return (NUMBERS if self.narrow else IN_BYTES)[self.number]

    def abstract(self) -> Quantized:
        """The leaf's shapes."""
        scales = jax.ShapeDtypeStruct(self.scale_shape, self.scale_type)
        zeros = jax.ShapeDtypeStruct(self.scale_shape, np.int8) if self.has_zeros else None
        values = jax.ShapeDtypeStruct(self.param.shape, self.number_type)
        return self._leaf(values, scales, zeros)

    def read(self, stored: Sequence[Scaled], make: Callable[[Sequence[int], np.dtype], Assembly]) -> Quantized:
        """The leaf, whose arrays `make` begins by shape and dtype. The host holds one stored tensor meanwhile."""
        target = self.number_type
        values, scales = make(self.param.shape, target), make(self.scale_shape, self.scale_type)
        zeros = make(self.scale_shape, np.dtype(np.int8)) if self.has_zeros else None
        groups = [[axis.size for axis in group] for group in self.param.stored_groups]
        for at, one in zip(np.ndindex(self.param.stack), stored, strict=True):
            data = one.read()
            values.add(at, _arranged(self.param, data.numbers, self.param.dims.sizes))
            for whole, part in ((scales, data.scales), (zeros, data.zeros)):
                if whole is not None and part is not None:
                    whole.add(at, _arranged(self.param, regrouped(part, one.block, groups), _counts(self.param, one)))
        return self._leaf(*(None if whole is None else whole.finish() for whole in (values, scales, zeros)))

    def _leaf(self, values: Any, scales: Any, zeros: Any) -> Quantized:
        return Quantized(values, scales, zeros, self.rounding, self.dtype)


def form_of(param: Param, stored: Sequence[Stored | None], dtype: np.dtype, *, narrow: bool = True) -> Form | None:
    """The leaf for a parameter whose tensors are stored as `stored`; None where it must be a plain array.

    It must be the weight of a product, and all of its layers and members must be stored in the same way.
    """
    scaled = [one for one in stored if isinstance(one, Scaled)]
    if not scaled or len(scaled) < len(stored) or not param.contract or param.offset or param.wide:
        return None
    first = scaled[0]
    ways = {(one.number, one.shape, one.block, one.scale_type, one.has_zeros, one.rounding) for one in scaled}
    if len(ways) > 1:
        return None
    counts = _counts(param, first)
    shape = param.stack + tuple(counts[axis.letter] for axis in param.dims.axes)
    return Form(param, first.number, shape, first.scale_type, first.has_zeros, first.rounding, dtype, narrow)


def _counts(param: Param, stored: Scaled) -> dict[str, int]:
    """How many blocks each axis of the weight has."""
    return {
        axis.letter: axis.size // each
        for block, group in zip(stored.block, param.stored_groups, strict=True)
        for axis, each in zip(group, split_block(block, [axis.size for axis in group]), strict=True)
    }


def _arranged(param: Param, array: np.ndarray, sizes: dict[str, int]) -> np.ndarray:
    """From the checkpoint's axes to ours."""
    if param.layout is None:
        return array
    arranged: np.ndarray = rearrange(array, param.layout, **{k: v for k, v in sizes.items() if k in param.layout})
    return arranged
