"""Several sources as one: a model, and what comes in files of its own beside it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from slipstream.errors import CheckpointError
from slipstream.spec.source import Source, Stored


class Joined:
    """A Source with the tensors of all its parts. Raises CheckpointError for a name that two of them have."""

    def __init__(self, parts: Sequence[Source]) -> None:
        self._owners: dict[str, Source] = {}
        for part in parts:
            for name in part.names():
                if name in self._owners:
                    raise CheckpointError(f"the tensor {name!r} is there twice")
                self._owners[name] = part

    def names(self) -> Collection[str]:
        """All names."""
        return self._owners.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, without reading the data."""
        return self._owners[name].shape(name)

    def read(self, name: str) -> np.ndarray:
        """The tensor."""
        return self._owners[name].read(name)

    def blocks(self, name: str) -> Stored | None:
        """The tensor as it is stored."""
        return self._owners[name].blocks(name)
