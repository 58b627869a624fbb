"""Where weights come from: one protocol for safetensors, GGUF, and random weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from slipstream.spec.tokenizer import TokenizerSpec

FLOATS = ("F32", "F16", "BF16")
"""Kinds of `Blocks` that are plain floats."""


@dataclass(frozen=True)
class Blocks:
    """A tensor as a file stores it: in quantized blocks, or in floats, each a block of its own.

    `kind`: GGUF's name of the block type, or one of FLOATS. `shape`: the tensor's.

    `read()` gives the bytes, uint8 [rows..., bytes of a row].
    """

    kind: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


class Source(Protocol):
    """A set of named tensors under Hugging Face's names and shapes, whatever the file calls them.

    A GGUF source translates names, reverses its axis order, undoes the Q/K permutation, and gives norms back as
    Hugging Face stores them, so that one plan reads both.
    """

    def names(self) -> Collection[str]:
        """All tensor names."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, without reading the data."""

    def read(self, name: str) -> np.ndarray:
        """The tensor in its stored float dtype; blocks are dequantized to float32."""

    def blocks(self, name: str) -> Blocks | None:
        """The tensor's blocks, not read yet; None where its values are not those that the file stores."""


@dataclass(frozen=True)
class GenerationDefaults:
    """What the checkpoint says about generation: tokens that end a reply, and suggested sampling values."""

    eos_token_ids: tuple[int, ...] = ()
    sampling: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. `config` has config.json's keys (a GGUF's metadata is translated to them)."""

    path: Path
    config: Mapping[str, Any]
    source: Source
    tokenizer: TokenizerSpec | None
    generation: GenerationDefaults
