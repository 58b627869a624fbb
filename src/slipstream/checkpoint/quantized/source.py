"""A safetensors source whose weights are quantized, as a Source under the names that they would have otherwise."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

import numpy as np

from slipstream.checkpoint.quantized.method import Method, Names, Parts, Tensor, Values
from slipstream.checkpoint.safetensors_source import SafetensorsSource
from slipstream.errors import CheckpointError
from slipstream.quant.scaled import values_of
from slipstream.spec.source import Scaled, Stored

PLAIN = ("float64", "float32", "float16", "bfloat16")
"""What a weight that is not quantized is stored in."""


@dataclass(frozen=True)
class _Weight:
    """A quantized weight: its module's name and its tensors."""

    module: str
    parts: Parts


class QuantizedSource:
    """The tensors of a quantized checkpoint. A quantized weight has the name and shape of a plain one.

    Raises CheckpointError for a weight that lacks a part, or that the config says is not quantized and is.
    """

    def __init__(self, source: SafetensorsSource, method: Method) -> None:
        self._source, self._method = source, method
        self._weights: dict[str, _Weight] = {}
        self._found: dict[str, Scaled | Values] = {}
        present = set(source.names())
        for names in method.names:
            for name in [name for name in present if name.endswith(names.marker)]:
                module = name.removesuffix(names.marker)
                self._weights[module + names.weight] = weight = self._weight(module, names, present)
                present -= {part.name for part in weight.parts.values()}
        self._plain = frozenset(present)
        for name in sorted(self._plain):
            if name.endswith("weight") and source.dtype(name).name not in PLAIN:
                raise CheckpointError(
                    f"the tensor {name!r} holds {source.dtype(name).name} and there is no scale for it: the checkpoint "
                    "lacks tensors, or its quantization_config is of another method"
                )

    def _weight(self, module: str, names: Names, present: set[str]) -> _Weight:
        if self._method.skips(module):
            raise CheckpointError(f"quantization_config says that {module} is not quantized, and it is stored so")
        ends = (names.marker, *names.needed, *names.optional)
        if missing := [end for end in names.needed if module + end not in present]:
            raise CheckpointError(f"{module} is quantized and lacks {', '.join(module + end for end in missing)}")
        return _Weight(module, {end: self._tensor(module + end) for end in ends if module + end in present})

    def _tensor(self, name: str) -> Tensor:
        return Tensor(name, self._source.shape(name), self._source.dtype(name), partial(self._source.read, name))

    def names(self) -> Collection[str]:
        """All tensor names."""
        return self._plain | self._weights.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, without reading the data."""
        return self._source.shape(name) if name in self._plain else self._stored(name).shape

    def read(self, name: str) -> np.ndarray:
        """The tensor: a quantized one as float32, others in their stored dtype."""
        if name in self._plain:
            return self._source.read(name)
        stored = self._stored(name)
        return values_of(stored) if isinstance(stored, Scaled) else stored.read()

    def blocks(self, name: str) -> Stored | None:
        """The stored numbers, or floats; None for a weight whose groups are in no order."""
        if name in self._plain:
            return self._source.blocks(name)
        stored = self._stored(name)
        return stored if isinstance(stored, Scaled) else None

    def _stored(self, name: str) -> Scaled | Values:
        if name not in self._found:
            weight = self._weights[name]
            self._found[name] = self._method.stored(weight.module, weight.parts)
        return self._found[name]
