"""A source whose matrices of layers are rounded to few bits as they are read, of a model that is not quantized."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import numpy as np

from slipstream.errors import CheckpointError, ConfigError
from slipstream.quant.rounding import Scheme, quantize
from slipstream.quant.scaled import values_of
from slipstream.spec.param import Param, params
from slipstream.spec.source import Scaled, ScaledData, Source, Stored

NOT_QUANTIZED = frozenset({"vocab", "choices"})
"""Roles of axes whose weights stay as they are: of logits and embeddings; of a router, which chooses experts."""

SCALE_TYPE = np.dtype(np.float32)


class RoundedSource:
    """`source` with its matrices rounded by `scheme`, to the nearest, one tensor at a time.

    Raises ConfigError where the scheme does not fit the model, or the checkpoint is quantized already.
    """

    def __init__(self, source: Source, plan: Any, scheme: Scheme) -> None:
        self._source, self._scheme = source, scheme
        self._chosen = chosen_matrices(source, plan, scheme)
        for name in self._chosen:
            if isinstance(source.blocks(name), Scaled):
                raise ConfigError(f"the checkpoint is quantized already ({name}): leave --quantization out")

    def names(self) -> Collection[str]:
        """All tensor names."""
        return self._source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, without reading the data."""
        return self._source.shape(name)

    def read(self, name: str) -> np.ndarray:
        """The tensor; a matrix with its values after rounding, in float32."""
        stored = self.blocks(name)
        return values_of(stored) if isinstance(stored, Scaled) else self._source.read(name)

    def blocks(self, name: str) -> Stored | None:
        """The numbers of a matrix, which are computed when they are read; other tensors as the source has them."""
        if name not in self._chosen:
            return self._source.blocks(name)
        shape, number = self._source.shape(name), self._scheme.number
        block = (1, self._scheme.group or shape[1])
        return Scaled(number, shape, block, SCALE_TYPE, False, None, partial(self._rounded, name))

    def _rounded(self, name: str) -> ScaledData:
        return rounded(self._source, name, self._scheme, SCALE_TYPE)


def rounded(source: Source, name: str, scheme: Scheme, scale_type: np.dtype) -> ScaledData:
    """One matrix, rounded. Raises CheckpointError for weights that are not finite."""
    try:
        return quantize(source.read(name), scheme, scale_type)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from error


def chosen_matrices(source: Source, plan: Any, scheme: Scheme) -> frozenset[str]:
    """Names of the matrices of products in layers. Raises ConfigError where `scheme` does not fit one of them."""
    present = set(source.names())
    chosen = {name for _, param in params(plan) if _is_layer(param) for name in param.names if name in present}
    for name in sorted(chosen):
        inputs = source.shape(name)[1]
        if scheme.group and inputs % scheme.group:
            fits = [group for group in (64, 32) if inputs % group == 0 and group < scheme.group]
            advice = f"use int4-g{fits[0]}" if fits else "use int8"
            raise ConfigError(f"{name} has {inputs} inputs, which are no whole groups of {scheme.group}: {advice}")
    if not chosen:
        raise ConfigError("this model has no matrices of layers that are tensors of their own: nothing to quantize")
    return frozenset(chosen)


def _is_layer(param: Param) -> bool:
    roles = {axis.role for axis in param.axes}
    return bool(param.contract) and len(param.stored_shape) == 2 and not param.wide and not roles & NOT_QUANTIZED
