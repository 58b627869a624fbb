"""Tensors in small numbers with shared scales, on the host: their values, and their scales in other blocks."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod

import ml_dtypes
import numpy as np

from slipstream.spec.source import Number, Scaled, ScaledData

NUMBERS: dict[Number, np.dtype] = {
    "int4": np.dtype(ml_dtypes.int4),
    "int8": np.dtype(np.int8),
    "fp8_e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "fp4_e2m1": np.dtype(ml_dtypes.float4_e2m1fn),
}
"""The dtype of each kind of number on a device."""

IN_BYTES: dict[Number, np.dtype] = {
    **NUMBERS,
    "int4": np.dtype(np.int8),
    "fp4_e2m1": np.dtype(ml_dtypes.float8_e4m3fn),
}
"""Dtypes of a byte or more that hold the same numbers: for devices to which JAX cannot hand numbers of 4 bits."""

LARGEST: dict[Number, float] = {"int4": 7.0, "int8": 127.0, "fp8_e4m3": 448.0, "fp4_e2m1": 6.0}
"""The largest number whose negative exists too."""


def dequantize(data: ScaledData, block: Sequence[int]) -> np.ndarray:
    """The values in float32, each product rounded once."""
    shape = data.numbers.shape
    values = data.numbers.astype(np.float32)
    if data.zeros is not None:
        values -= spread(data.zeros.astype(np.float32), block, shape)
    with np.errstate(all="ignore"):  # a damaged scale gives values that are not finite, here as on a device
        values *= spread(data.scales.astype(np.float32), block, shape)
    return values


def spread(scales: np.ndarray, block: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Scales of blocks for each index of a tensor: a view where one scale serves a whole axis, else repeated."""
    for axis, (each, size) in enumerate(zip(block, shape, strict=True)):
        if scales.shape[axis] != 1 and each != 1:
            scales = np.repeat(scales, each, axis)[(slice(None),) * axis + (slice(size),)]
    return np.broadcast_to(scales, shape)


def split_block(block: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """A block of an axis that is made of several, as a block of each of these; smaller where it does not fit them.

    Heads of 64 in blocks of 128 are blocks of (2, 64); heads of 96 in blocks of 128 become blocks of (1, 32), each
    inside one of the stored ones.
    """
    if block >= prod(sizes):
        return tuple(sizes)
    blocks: list[int] = []
    for size in reversed(sizes):
        each = gcd(block, size)
        blocks.append(each)
        block = block // each if each == size else 1
    return tuple(reversed(blocks))


def regrouped(scales: np.ndarray, stored: Sequence[int], groups: Sequence[Sequence[int]]) -> np.ndarray:
    """Scales of stored blocks as scales of the blocks of `split_block`, an axis a stored one.

    `stored`: the stored block of each axis. `groups`: the sizes of the axes that each stored one is made of.
    """
    for axis, (block, sizes) in enumerate(zip(stored, groups, strict=True)):
        starts = np.zeros((), np.int64)
        for size, each in zip(sizes, split_block(block, sizes), strict=True):
            starts = starts[..., None] * size + np.arange(0, size, each)
        scales = np.take(scales, starts.reshape(-1) // block, axis)
    return scales


def values_of(scaled: Scaled) -> np.ndarray:
    """Read a tensor as float32."""
    return dequantize(scaled.read(), scaled.block)
