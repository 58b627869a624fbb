"""What a way of storing quantized weights must say, so that one source reads them all."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from slipstream.errors import CheckpointError
from slipstream.spec.source import Scaled


@dataclass(frozen=True)
class Tensor:
    """One stored tensor, not read yet."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def expect(self, dtypes: tuple[str, ...], shape: tuple[int, ...] | None = None) -> Tensor:
        """Itself. Raises CheckpointError for another dtype or shape."""
        if self.dtype.name not in dtypes:
            raise CheckpointError(f"the tensor {self.name!r} has dtype {self.dtype.name}, not {' or '.join(dtypes)}")
        if shape is not None and self.shape != shape:
            raise CheckpointError(f"the tensor {self.name!r} has shape {self.shape}, not {shape}")
        return self


FLOAT_TYPES = ("float32", "float16", "bfloat16")
"""What scales are stored in."""

Parts = Mapping[str, Tensor]
"""The tensors of one weight by the ends of their names."""


@dataclass(frozen=True)
class Values:
    """A weight whose numbers share scales, but not in blocks: `read` gives its values in float32."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Names:
    """How the tensors of a quantized weight are named: all begin alike and differ in their ends.

    `weight`: the end of the name that the weight would have if it were not quantized. `marker`: the end that is there
    if and only if it is. `needed`, `optional`: the other ends. A `needed` end may be that of the weight itself.
    """

    weight: str
    marker: str
    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()


class Method(Protocol):
    """One `quant_method`, with the settings of its quantization_config."""

    @property
    def names(self) -> tuple[Names, ...]:
        """The ways in which its weights are named; the first whose marker is there is taken."""

    def skips(self, module: str) -> bool:
        """Whether the config says that this module is not quantized."""

    def stored(self, module: str, parts: Parts) -> Scaled | Values:
        """A quantized weight. Raises CheckpointError where the tensors do not fit one another or the config."""


def names_a_part(module: str, patterns: tuple[str, ...]) -> bool:
    """Whether a pattern is one or several of the module's dotted names in a row: "mlp.gate", "layers.*.self_attn".

    A star stands for one name, or a part of it.
    """
    found = (re.escape(pattern).replace(r"\*", "[^.]*") for pattern in patterns)
    return any(re.search(rf"(^|\.){pattern}(\.|$)", module) for pattern in found)


def matches(module: str, patterns: tuple[str, ...]) -> bool:
    """Whether a pattern of compressed-tensors is the module's name, or, after "re:", matches its beginning.

    Raises CheckpointError for a pattern that is not a regular expression.
    """
    for pattern in patterns:
        if not pattern.startswith("re:"):
            if pattern == module:
                return True
            continue
        try:
            if re.match(pattern[3:], module):
                return True
        except re.error as error:
            raise CheckpointError(f"config.json: quantization_config has the pattern {pattern!r}: {error}") from error
    return False
