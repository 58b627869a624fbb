"""Quantized tensors of any checkpoint as blocks that the native kernels' packing knows, without loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

import numpy as np

from slipstream.kernels.native.pack import scaled_blocks
from slipstream.quant.scaled import dequantize, spread
from slipstream.spec.source import Blocks, Number, Scaled, ScaledData, Stored

SHARED = (128, 64, 32)
"""How many inputs share a scale in the kinds of `scaled_blocks`, the cheapest first."""


def as_blocks(stored: Stored | None) -> Blocks | None:
    """The same values in blocks, not read yet; None for what is not stored as numbers.

    int8, int4 and fp8 keep their numbers and scales; a scale of more inputs than a kind's is repeated. int4 with zero
    points has five bits without them: Q5_0 where the scales are float16, as Q5_0's are, else int8. int8 with zero
    points has what they take off as a number of its own, where scales of 16 bits make that exact. fp4 is int8 with half
    its scale. What no kind holds exactly (float32 scales with zero points, groups that do not divide the inputs) are
    float32 values.
    """
    if not isinstance(stored, Scaled):
        return stored
    kind, make = _kind(stored)
    return Blocks(kind.upper(), stored.shape, lambda: make(stored, stored.read()))


_KINDS: dict[tuple[Number, bool], str] = {("int4", False): "int4", ("fp8_e4m3", False): "f8"}
"""Numbers, and whether they have zero points, that have kinds of their own; others are int8."""


def _kind(stored: Scaled) -> tuple[str, Callable[[Scaled, ScaledData], np.ndarray]]:
    inputs, block = stored.shape[-1], stored.block[-1]
    shared = next((n for n in SHARED if inputs % n == 0 and (block % n == 0 or block >= inputs)), None)
    name: tuple[Number, bool] = stored.number, stored.has_zeros
    shifted = name == ("int8", True)
    if shared is None or (shifted and stored.scale_type.itemsize > 2):
        return "f32", _float_rows
    if name == ("int4", True) and stored.scale_type == np.float16:
        return "q5_0", _five_bit_rows
    own = "int8z" if shifted else _KINDS.get(name, "int8")
    kind = f"{own}_{shared}"
    return kind, partial(_scaled_rows, kind, shared)


def _scaled_rows(kind: str, shared: int, stored: Scaled, data: ScaledData) -> np.ndarray:
    rows = prod(stored.shape[:-1])
    if kind.startswith("int8z"):
        assert data.zeros is not None
        whole = data.scales.astype(np.float32)
        scales, offsets = (_scales(stored, one, shared).reshape(rows, -1) for one in (whole, -whole * data.zeros))
        blocks = scaled_blocks(kind, data.numbers.reshape(rows, -1), scales, offsets)
        return blocks.reshape(*stored.shape[:-1], -1)
    numbers, factor = _without_zeros(stored, data), np.float32(1)
    if stored.number == "fp4_e2m1":  # 0, 0.5, 1, 1.5, 2, 3, 4, 6: twice that are integers
        numbers, factor = (data.numbers.astype(np.float32) * 2).astype(np.int8), np.float32(0.5)
    scales = _scales(stored, data.scales.astype(np.float32) * factor, shared)
    blocks = scaled_blocks(kind, numbers.reshape(rows, -1), scales.reshape(rows, -1))
    return blocks.reshape(*stored.shape[:-1], -1)


def _five_bit_rows(stored: Scaled, data: ScaledData) -> np.ndarray:
    """Blocks of Q5_0: a float16 scale, 32 fifth bits, 32 low halves; a number is stored plus 16."""
    numbers = (_without_zeros(stored, data) + np.int8(16)).view(np.uint8)
    numbers = numbers.reshape(*stored.shape[:-1], -1, 32)
    scales = _scales(stored, data.scales, 32)[..., None].astype("<f2")
    fifth = np.packbits(numbers >> 4, axis=-1, bitorder="little")
    low = numbers[..., :16] & 15 | (numbers[..., 16:] & 15) << 4
    blocks = np.concatenate([np.ascontiguousarray(scales).view(np.uint8), fifth, low], axis=-1)
    return blocks.reshape(*stored.shape[:-1], -1)


def _float_rows(stored: Scaled, data: ScaledData) -> np.ndarray:
    return dequantize(data, stored.block).view(np.uint8)


def _without_zeros(stored: Scaled, data: ScaledData) -> np.ndarray:
    if data.zeros is None:
        return np.ascontiguousarray(data.numbers)
    return np.ascontiguousarray(data.numbers - spread(data.zeros, stored.block, stored.shape))


def _scales(stored: Scaled, scales: np.ndarray, shared: int) -> np.ndarray:
    """A scale for each row and each `shared` inputs."""
    count = stored.shape[-1] // shared
    block = (*stored.block[:-1], max(1, stored.block[-1] // shared))
    return spread(scales, block, (*stored.shape[:-1], count))
