"""Where weights come from: one protocol for safetensors, GGUF, and random weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

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


Number = Literal["int4", "int8", "fp8_e4m3", "fp4_e2m1"]
"""How a quantized number is stored: signed integers, or small floats of so many exponent and mantissa bits."""

Rounding = Literal["int8", "fp8_e4m3"]
"""Numbers that the inputs of a product may be rounded to, with a scale for each token."""


class ScaledData(NamedTuple):
    """What `Scaled.read` gives.

    `numbers`: the tensor's shape, as int8 (int4 too, within -8..7), float8_e4m3fn or float4_e2m1fn. `scales`: floats,
    one for each block. `zeros`: int8 like the scales, or None: the number that stands for 0.
    """

    numbers: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None = None


@dataclass(frozen=True)
class Scaled:
    """A tensor stored as small numbers that share scales: its values are (numbers - zeros) * scales.

    `block`: for each axis of `shape` how many of its indices share a scale; the last block of an axis may be cut off.
    A scale for each row of a matrix is (1, columns), groups of 128 along a row are (1, 128). `scale_type`: the scales'
    numpy dtype. `has_zeros`: whether there are zero points. `rounding`: what the checkpoint asks to round the inputs of
    this weight's products to, None for nothing.
    """

    number: Number
    shape: tuple[int, ...]
    block: tuple[int, ...]
    scale_type: np.dtype
    has_zeros: bool
    rounding: Rounding | None
    read: Callable[[], ScaledData]

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """How many blocks there are along each axis."""
        return tuple(-(-size // block) for size, block in zip(self.shape, self.block, strict=True))


Stored = Blocks | Scaled
"""A tensor as a file stores it, not read yet."""


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

    def blocks(self, name: str) -> Stored | None:
        """The tensor as it is stored, not read yet; None where its values are not those that the file stores."""


@dataclass(frozen=True)
class GenerationDefaults:
    """What the checkpoint says about generation: tokens that end a reply, and suggested sampling values."""

    eos_token_ids: tuple[int, ...] = ()
    sampling: Mapping[str, float] = field(default_factory=dict)


PoolingKind = Literal["cls", "mean", "last"]
"""Which states make the vector of a text: the first token's, the mean of all, the last token's."""


@dataclass(frozen=True)
class Dense:
    """A product that follows the pooling: `outputs` numbers of `inputs`, then an activation by torch's name.

    Its tensors in the checkpoint's source are `name`.linear.weight and, where there is a `bias`, `name`.linear.bias.
    """

    name: str
    inputs: int
    outputs: int
    bias: bool
    activation: str


@dataclass(frozen=True)
class Answers:
    """How a language model scores a pair of texts: by the likelihood of the token `yes` over `no` after a prompt.

    `no`: None where the logit of `yes` alone is the score. `instruction`: what the prompt says is wanted; None: its
    own.
    """

    yes: int
    no: int | None = None
    instruction: str | None = None


@dataclass(frozen=True)
class Pooling:
    """What sentence-transformers says about a model that makes a vector of a text, or a score of a pair.

    `normalize`: vectors have length 1. `max_tokens`: texts were cut to so many tokens in training. `dense`: what is
    computed of the pooled states, in order. `answers`: set where pairs are scored so.
    """

    kind: PoolingKind
    normalize: bool
    max_tokens: int | None = None
    dense: tuple[Dense, ...] = ()
    answers: Answers | None = None


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. `config` has config.json's keys (a GGUF's metadata is translated to them).

    `pooling`: None where the checkpoint says nothing about it, as a language model's.
    """

    path: Path
    config: Mapping[str, Any]
    source: Source
    tokenizer: TokenizerSpec | None
    generation: GenerationDefaults
    pooling: Pooling | None = None
