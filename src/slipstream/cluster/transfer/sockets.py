"""Pages through the connection itself: pieces of layers, straight out of one engine's memory and into the other's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from slipstream.cluster.transfer.frames import Batch, Broken, Channel, Piece
from slipstream.engine.page_io import Blocks, BlockShape, PageIO

PIECE_BYTES = 2**20
"""Bytes of a piece, or one layer where that is more."""


class SocketSender:
    """See `offers.Sender`."""

    def __init__(self, shape: BlockShape) -> None:
        self._shape = shape

    def send(self, channel: Channel, count: int, blocks: Blocks) -> int:
        """Send a batch; waits for the device first."""
        arrays = {name: _bytes(np.asarray(array)) for name, array in blocks.items()}
        channel.say(Batch(count))
        before = channel.sent
        for piece in pieces(self._shape, count):
            channel.say(piece)
            channel.send(False, (layer.data for layer in _layers(arrays[piece.leaf], piece, count)))
        return channel.sent - before


class SocketReceiver:
    """See `fetches.Receiver`."""

    def __init__(self, io: PageIO) -> None:
        self._io = io

    def receive(self, channel: Channel, batch: Batch) -> Blocks:
        """Read a batch into new memory, and place it."""
        blocks = self._io.shape.empty(self._io.width_for(batch.count))
        arrays = {name: _bytes(array) for name, array in blocks.items()}
        for expected in pieces(self._io.shape, batch.count):
            piece = channel.hear()
            if piece != expected:
                raise Broken("corrupt", f"{piece} came where {expected} was due")
            channel.receive([layer.data for layer in _layers(arrays[expected.leaf], expected, batch.count)])
        return self._io.place(blocks)


def pieces(shape: BlockShape, count: int) -> Iterator[Piece]:
    """The pieces of a batch, in order: the same on both sides."""
    for leaf, (sizes, dtype) in shape.leaves(count).items():
        layer = int(np.prod(sizes[1:])) * dtype.itemsize
        most = max(1, PIECE_BYTES // layer)
        for first in range(0, shape.layers, most):
            yield Piece(leaf, first, min(most, shape.layers - first))


def _bytes(array: np.ndarray) -> np.ndarray:
    """An array [l, n, ...] as bytes [l, n, bytes of a page and layer], in the same memory where that can be."""
    array = np.ascontiguousarray(array)
    return array.reshape(*array.shape[:2], -1).view(np.uint8)


def _layers(array: np.ndarray, piece: Piece, count: int) -> Iterator[np.ndarray]:
    for layer in range(piece.first, piece.first + piece.layers):
        yield array[layer, :count].reshape(-1)
