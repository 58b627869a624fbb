"""Random weights under a checkpoint's names: for tests, and for a model whose real weights nobody has."""

from __future__ import annotations

from collections.abc import Collection
from math import prod, sqrt
from typing import Any
from zlib import crc32

import numpy as np

from slipstream.spec.param import Param, params
from slipstream.spec.source import Blocks


class RandomSource:
    """A Source for any plan. A tensor depends on the seed and its own name only, not on the order of reading.

    Products get normal values of variance 1 / (inputs); "ones" and "zeros" are those plus `jitter` times a normal
    value, so that a test notices a norm or a bias that is left out or put in the wrong place.
    """

    def __init__(self, plan: Any, seed: int = 0, *, dtype: np.dtype | None = None, jitter: float = 0.1) -> None:
        self._params: dict[str, Param] = {name: param for _, param in params(plan) for name in param.names}
        self._seed = seed
        self._dtype = dtype or np.dtype(np.float32)
        self._jitter = jitter

    def names(self) -> Collection[str]:
        """All names that the plan reads."""
        return self._params.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that the plan expects in a checkpoint."""
        return self._params[name].stored_shape

    def read(self, name: str) -> np.ndarray:
        """The tensor, made anew at each call."""
        param = self._params[name]
        noise = np.random.default_rng((self._seed, crc32(name.encode()))).standard_normal(
            param.stored_shape, dtype=np.float32
        )
        if param.init == "normal":
            return (noise * _scale(param)).astype(self._dtype)
        return (np.float32(param.init == "ones") + np.float32(self._jitter) * noise).astype(self._dtype)

    def blocks(self, name: str) -> Blocks | None:
        """None: these are plain floats."""
        return None


def _scale(param: Param) -> np.float32:
    """1 / sqrt(inputs): the axes that a product sums over, else the last stored axis as in Hugging Face's layouts."""
    summed = prod(axis.size for axis in param.dims.axes if axis.role in param.contract)
    inputs = summed if param.contract else param.stored_shape[-1]
    return np.float32(1.0 / sqrt(max(inputs, 1)))
