"""Image models whose weights are stored in 8-bit floats, as the Flux files that fit a 16 GB card are.

Two ways are common, neither of which a config.json describes. Weights may be float8_e4m3 numbers as they are, without
scales (Kijai's files, and those that ComfyUI's savers write with fp8_e4m3fn). Or each has a number beside it that it is
multiplied by: `scale_weight` ("scaled fp8", marked by an empty tensor of that name), or `weight_scale`. What is said
there of inputs' scales is not used: inputs stay as they are, which is closer to the original.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import numpy as np

from slipstream.checkpoint.quantized.fp8 import float8
from slipstream.checkpoint.quantized.method import FLOAT_TYPES, Tensor
from slipstream.checkpoint.safetensors_source import SafetensorsSource
from slipstream.errors import CheckpointError
from slipstream.quant.scaled import values_of
from slipstream.spec.source import Scaled, Source, Stored

NUMBERS = "float8_e4m3fn"
WEIGHT = ".weight"
SCALES = (".scale_weight", ".weight_scale")
"""Ends of the names of scales, in place of WEIGHT."""
UNREAD = (".scale_input", ".input_scale", ".comfy_quant")
MARK = "scaled_fp8"
ONE = np.ones((), np.float32)


def opened(source: SafetensorsSource) -> Source:
    """The source with its 8-bit floats as scaled numbers; itself where there are none.

    Raises CheckpointError for scales that do not fit their weights, or belong to none.
    """
    small = any(source.dtype(name).name == NUMBERS for name in source.names())
    return Float8(source) if small else source


class Float8:
    """A Source. Matrices of float8_e4m3 have one scale each, or one for each output; other such tensors are floats."""

    def __init__(self, source: SafetensorsSource) -> None:
        self._source = source
        present = set(source.names())
        self._scales: dict[str, str] = {}
        for name in sorted(present):
            end = next((end for end in SCALES if name.endswith(end)), None)
            if end is not None:
                self._scales[name.removesuffix(end) + WEIGHT] = name
        aside = {name for name in present if name.endswith(UNREAD) or name.rpartition(".")[2] == MARK}
        self._names = frozenset(present - aside - set(self._scales.values()))
        for weight, scale in self._scales.items():
            if weight not in self._names or not self._small(weight):
                raise CheckpointError(f"there is a scale {scale!r}, and no float8_e4m3 weight {weight!r} for it")
            self._stored(weight)

    def names(self) -> Collection[str]:
        """All tensors but scales."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, without reading the data."""
        return self._source.shape(name)

    def read(self, name: str) -> np.ndarray:
        """The tensor; 8-bit floats as float32."""
        if not self._small(name):
            return self._source.read(name)
        if name in self._scales:
            return values_of(self._stored(name))
        return self._source.read(name).astype(np.float32)

    def blocks(self, name: str) -> Stored | None:
        """Numbers and scales of a matrix; floats as they are stored; None for other tensors of 8-bit floats."""
        if not self._small(name):
            return self._source.blocks(name)
        return self._stored(name) if len(self.shape(name)) == 2 else None

    def _small(self, name: str) -> bool:
        return self._source.dtype(name).name == NUMBERS

    def _stored(self, name: str) -> Scaled:
        scale = self._scales.get(name)
        given = Tensor("1", (), ONE.dtype, lambda: ONE) if scale is None else self._tensor(scale).expect(FLOAT_TYPES)
        return float8(self._tensor(name), _column(given), None, None)

    def _tensor(self, name: str) -> Tensor:
        return Tensor(name, self._source.shape(name), self._source.dtype(name), partial(self._source.read, name))


def _column(scale: Tensor) -> Tensor:
    """Scales of outputs [out] as [out, 1]."""
    if len(scale.shape) != 1 or scale.shape == (1,):
        return scale
    return Tensor(scale.name, (*scale.shape, 1), scale.dtype, lambda: scale.read()[:, None])
