"""A source whose tensors are cut out of others: where a file keeps several in one, in another order, or transposed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from slipstream.errors import CheckpointError
from slipstream.spec.source import Blocks, Scaled, ScaledData, Source, Stored

Rows = tuple[tuple[int, int], ...]
"""First row and end of each run of rows."""


@dataclass(frozen=True)
class Piece:
    """Where a tensor lies. `stored`: the name of the one that it is cut out of.

    `rows`: runs along the first axis, one after the other; None for all. `shape`: what the result is given, None for
    that of the rows. `transposed`: a matrix is read with its axes exchanged.
    """

    stored: str
    rows: Rows | None = None
    shape: tuple[int, ...] | None = None
    transposed: bool = False


class Cut:
    """A Source. `pieces`: by the new names. Raises CheckpointError where a piece does not fit its tensor."""

    def __init__(self, source: Source, pieces: Mapping[str, Piece]) -> None:
        self._source, self._pieces = source, dict(pieces)
        self._shapes = {name: self._shape(name, piece) for name, piece in self._pieces.items()}

    def names(self) -> Collection[str]:
        """The new names."""
        return self._pieces.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, without reading the data."""
        return self._shapes[name]

    def read(self, name: str) -> np.ndarray:
        """The tensor; a view of the stored one where its rows are one run."""
        piece = self._pieces[name]
        whole = self._source.read(piece.stored)
        if piece.rows is None:
            cut = whole
        else:
            runs = [whole[first:end] for first, end in piece.rows]
            cut = runs[0] if len(runs) == 1 else np.concatenate(runs)
        return (cut.T if piece.transposed else cut).reshape(self._shapes[name])

    def blocks(self, name: str) -> Stored | None:
        """Rows of the tensor as they are stored, where they are one run of a matrix's; else None."""
        piece = self._pieces[name]
        stored = self._source.blocks(piece.stored)
        if piece.rows is None and piece.shape is None and not piece.transposed:
            return stored
        rows = piece.rows or ()
        if stored is None or len(stored.shape) < 2 or piece.shape is not None or piece.transposed or len(rows) != 1:
            return None
        ((first, end),) = rows
        if isinstance(stored, Scaled):
            return _rows_of(stored, first, end)
        return Blocks(stored.kind, self._shapes[name], lambda: stored.read()[first:end])

    def _shape(self, name: str, piece: Piece) -> tuple[int, ...]:
        stored = self._source.shape(piece.stored)
        cut = stored if piece.rows is None else (sum(end - first for first, end in piece.rows), *stored[1:])
        shape = cut[::-1] if piece.transposed else cut
        past = any(not 0 <= first < end <= prod(stored[:1]) for first, end in piece.rows or ())
        if past or (piece.transposed and len(stored) != 2) or (piece.shape and prod(piece.shape) != prod(shape)):
            raise CheckpointError(f"{piece.stored} has shape {stored}, out of which {name} cannot be cut")
        return piece.shape or shape


def _rows_of(stored: Scaled, first: int, end: int) -> Scaled | None:
    """Rows of scaled numbers, where each row has scales of its own or all have the same."""
    whole = stored.block[0] >= stored.shape[0]
    if not whole and stored.block[0] != 1:
        return None

    def read() -> ScaledData:
        numbers, scales, zeros = stored.read()
        own = slice(None) if whole else slice(first, end)
        return ScaledData(numbers[first:end], scales[own], None if zeros is None else zeros[own])

    shape = (end - first, *stored.shape[1:])
    return replace(stored, shape=shape, block=(shape[0] if whole else 1, *stored.block[1:]), read=read)
