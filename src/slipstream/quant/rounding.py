"""Rounding of weights to small numbers: to the nearest, with the scale of each group that makes the smallest error.

No text is run through the model, as GPTQ and AWQ do. A group's scale is looked for between the one that reaches its
largest weight and smaller ones that cut it off: at 4 bits the other weights gain more than it loses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from slipstream.quant.scaled import LARGEST, NUMBERS
from slipstream.spec.source import Number, ScaledData

SEARCHED: Mapping[Number, np.ndarray] = {
    "int4": np.linspace(1.1, 0.6, 26),  # above 1 because -8 exists and 8 does not
    "int8": np.linspace(1.0, 0.9, 6),
    "fp8_e4m3": np.ones(1),  # steps grow with the numbers: nothing is gained by cutting off
}
"""Scales that are tried, as shares of the one at which the largest weight is the largest number."""

ROWS_AT_ONCE = 1 << 21
"""Numbers that are rounded at a time: they stay in the processor's cache, and the host needs little beside them."""


@dataclass(frozen=True)
class Scheme:
    """Numbers, and how many inputs share a scale: None for all of an output's."""

    number: Number
    group: int | None = None


SCHEMES: Mapping[str, Scheme] = {
    "int8": Scheme("int8"),
    "int4-g128": Scheme("int4", 128),
    "int4-g64": Scheme("int4", 64),
    "int4-g32": Scheme("int4", 32),
    "fp8": Scheme("fp8_e4m3"),
}
"""What `slipstream quantize --scheme` takes."""


def quantize(weight: np.ndarray, scheme: Scheme, scale_type: np.dtype) -> ScaledData:
    """The numbers of a weight [out, in] and their scales [out, groups], of `scale_type`.

    Numbers are the nearest for the scales as they are stored. Raises ValueError where the inputs are no whole groups or
    a weight is not finite.
    """
    out, inputs = weight.shape
    group = scheme.group or inputs
    if inputs % group:
        raise ValueError(f"{inputs} inputs are no whole groups of {group}")
    numbers = np.empty((out, inputs), np.int8 if scheme.number == "int4" else NUMBERS[scheme.number])
    scales = np.empty((out, inputs // group), scale_type)
    rows = max(1, ROWS_AT_ONCE // max(inputs, 1))
    for start in range(0, out, rows):
        part = weight[start : start + rows].astype(np.float32).reshape(-1, inputs // group, group)
        found, best = _rounded(part, scheme.number, scale_type)
        numbers[start : start + rows], scales[start : start + rows] = found.reshape(-1, inputs), best
    return ScaledData(numbers, scales)


def _rounded(groups: np.ndarray, number: Number, scale_type: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Numbers [out, groups, inputs] and scales [out, groups]."""
    largest = np.abs(groups).max(axis=-1, initial=0)
    if not np.isfinite(largest).all():
        raise ValueError("some weights are not finite")
    whole = np.where(largest > 0, largest / np.float32(LARGEST[number]), 1)
    best = np.ones(largest.shape, scale_type)
    least = np.full(largest.shape, np.inf, np.float32)
    for share in SEARCHED[number]:
        scales = (whole * np.float32(share)).astype(scale_type)
        scales = np.where(scales > 0, scales, np.nextafter(scale_type.type(0), scale_type.type(1))).astype(scale_type)
        wide = scales.astype(np.float32)[..., None]
        missed = _nearest(groups / wide, number).astype(np.float32) * wide - groups
        error = np.einsum("ogi,ogi->og", missed, missed)
        better = error < least
        least, best = np.where(better, error, least), np.where(better, scales, best)
    return _nearest(groups / best.astype(np.float32)[..., None], number), best


def _nearest(values: np.ndarray, number: Number) -> np.ndarray:
    """The nearest numbers; values past the ends become the ends."""
    if number == "fp8_e4m3":
        return values.clip(-LARGEST[number], LARGEST[number]).astype(NUMBERS[number])
    nearest: np.ndarray = np.rint(values).clip(-LARGEST[number] - (number == "int4"), LARGEST[number]).astype(np.int8)
    return nearest
