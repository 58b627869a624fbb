"""Random checkpoints whose matrices are stored in quantized blocks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from slipstream.checkpoint import RandomSource
from slipstream.models.registry import family
from slipstream.spec.source import Blocks, Checkpoint, GenerationDefaults, Source


class QuantizedSource:
    """A source whose matrices are stored in blocks of `kinds`, one after the other by turns.

    `offers_blocks` False: it only gives their values.
    """

    def __init__(self, source: Source, kinds: Sequence[str], *, offers_blocks: bool) -> None:
        self._source = source
        self._kinds = {name: kinds[i % len(kinds)] for i, name in enumerate(sorted(source.names()))}
        self._offers = offers_blocks

    def names(self) -> Collection[str]:
        return self._source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(name)

    def _stored(self, name: str) -> np.ndarray | None:
        values = self._source.read(name)
        if values.ndim != 2:
            return None
        return np.ascontiguousarray(gguf.quants.quantize(values, self._kind(name))).view(np.uint8)

    def _kind(self, name: str) -> gguf.GGMLQuantizationType:
        return gguf.GGMLQuantizationType[self._kinds[name]]

    def read(self, name: str) -> np.ndarray:
        stored = self._stored(name)
        return self._source.read(name) if stored is None else gguf.quants.dequantize(stored, self._kind(name))

    def blocks(self, name: str) -> Blocks | None:
        stored = self._stored(name)
        return (
            None if stored is None or not self._offers else Blocks(self._kinds[name], self.shape(name), lambda: stored)
        )


def checkpoint(
    config: Mapping[str, Any], *, kinds: Sequence[str] = ("Q8_0",), offers_blocks: bool = True, jitter: float = 0.0
) -> Checkpoint:
    """Random weights for a config.json; `jitter` as `RandomSource` has it."""
    row = family(config)
    source = RandomSource(row.plan(row.from_hf(config)), 4, jitter=jitter)
    stored = QuantizedSource(source, kinds, offers_blocks=offers_blocks)
    return Checkpoint(Path("tiny"), config, stored, None, GenerationDefaults())
