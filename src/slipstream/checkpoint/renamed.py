"""A source whose tensors have other names: a model saved with or without the name of what it was a part of."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from slipstream.spec.source import Source, Stored


@dataclass(frozen=True)
class Renamed:
    """A Source. `stored`: the name in `source` of each of its tensors, by the new name."""

    source: Source
    stored: dict[str, str]

    @classmethod
    def of(cls, source: Source, rename: Callable[[str], str]) -> Renamed:
        """All tensors of `source`, each under `rename(name)`."""
        return cls(source, {rename(name): name for name in source.names()})

    def names(self) -> Collection[str]:
        """The new names."""
        return self.stored.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, without reading the data."""
        return self.source.shape(self.stored[name])

    def read(self, name: str) -> np.ndarray:
        """The tensor."""
        return self.source.read(self.stored[name])

    def blocks(self, name: str) -> Stored | None:
        """The tensor as it is stored."""
        return self.source.blocks(self.stored[name])
