"""Products with quantized weights in XLA's own operations, on any device.

Where one scale serves all numbers that a sum runs over, the numbers are multiplied as they are and the result is
scaled. Otherwise the weight is dequantized in the product's operand, which XLA fuses on TPU and GPU. A weight that
asks for it has its inputs rounded to 8 bits, with a scale for each token, and is multiplied in 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from slipstream.kernels.convolution import plain
from slipstream.kernels.matmul import Around, layer_of, products, rows_of
from slipstream.quant.leaf import Quantized, dequantize, spread
from slipstream.quant.scaled import LARGEST, NUMBERS
from slipstream.spec.source import Rounding

SUMS: dict[Rounding, DTypeLike] = {"int8": jnp.int32, "fp8_e4m3": jnp.float32}
"""What products of rounded inputs are summed in: integers exactly."""

FACTORS: dict[Rounding, tuple[str, ...]] = {"int8": ("int8", "int4"), "fp8_e4m3": ("float8_e4m3fn",)}
"""The weights that inputs of each kind are multiplied with as they are."""


@products.register(Quantized)
def _(ws: Sequence[Quantized], eqs: Sequence[str], x: Array, around: Around, dtype: DTypeLike) -> tuple[Array, ...]:
    x = around.before(x)
    return tuple(around.finish(product(eq, x, w).astype(dtype)) for eq, w in zip(eqs, ws, strict=True))


def product(eq: str, x: Array, w: Quantized) -> Array:
    """`einsum(eq, x, w)` in float32."""
    operands, result = eq.split("->")
    given, stored = operands.split(",")
    summed = [axis for axis, letter in enumerate(stored) if letter not in result]
    if w.zeros is not None or prod(w.scales.shape[axis] for axis in summed) > 1:
        return _einsum(eq, x, dequantize(w, x.dtype))
    scales = _for_result(w.scales, stored, result, dict(zip(stored, w.values.shape, strict=True)))
    if w.rounding is None or str(w.values.dtype) not in FACTORS[w.rounding]:
        return _einsum(eq, x, w.values.astype(x.dtype)) * scales
    numbers, steps = rounded(x, w.rounding, [axis for axis, letter in enumerate(given) if letter not in result])
    values = w.values.astype(numbers.dtype)  # int4 in int8
    sums = jnp.einsum(eq, numbers, values, preferred_element_type=SUMS[w.rounding])
    kept = dict(zip(given, x.shape, strict=True))
    return sums.astype(jnp.float32) * _for_result(steps, given, result, kept) * scales


def rounded(x: Array, to: Rounding, axes: Sequence[int]) -> tuple[Array, Array]:
    """Numbers and float32 scales of `x`, with one scale for all numbers along `axes` (of length 1 in the scales)."""
    x = x.astype(jnp.float32)
    steps = jnp.max(jnp.abs(x), axis=tuple(axes), keepdims=True) / LARGEST[to]
    steps = jnp.where(steps > 0, steps, 1.0)
    numbers = x / steps
    return (jnp.round(numbers) if to == "int8" else numbers).astype(NUMBERS[to]), steps


def _einsum(eq: str, x: Array, w: Array) -> Array:
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(eq, x, w, precision=precision, preferred_element_type=jnp.float32)


def _for_result(scales: Array, letters: str, result: str, sizes: dict[str, int]) -> Array:
    """Scales of an operand with axes `letters` as a factor of the result, whose letters they all but for the summed."""
    scales = jnp.squeeze(scales.astype(jnp.float32), [i for i, letter in enumerate(letters) if letter not in result])
    kept = [letter for letter in letters if letter in result]
    whole = [1 if count == 1 else sizes[letter] for count, letter in zip(scales.shape, kept, strict=True)]
    ordered = jnp.transpose(spread(scales, whole), sorted(range(len(kept)), key=lambda i: result.index(kept[i])))
    lengths = dict(zip(sorted(kept, key=result.index), ordered.shape, strict=True))
    return ordered.reshape([lengths.get(letter, 1) for letter in result])


@layer_of.register
def _(leaf: Quantized, index: Array | int) -> Quantized:
    zeros = None if leaf.zeros is None else layer_of(leaf.zeros, index)
    return replace(leaf, values=layer_of(leaf.values, index), scales=layer_of(leaf.scales, index), zeros=zeros)


@rows_of.register
def _(table: Quantized, ids: Array) -> Array:
    def rows(blocks: Array) -> Array:
        return blocks[ids // (table.values.shape[0] // blocks.shape[0])]

    zeros = None if table.zeros is None else rows(table.zeros)
    picked = replace(table, values=rows(table.values), scales=rows(table.scales), zeros=zeros)
    return dequantize(picked, table.dtype)


@plain.register
def _(leaf: Quantized) -> Array:
    return dequantize(leaf, leaf.dtype)
