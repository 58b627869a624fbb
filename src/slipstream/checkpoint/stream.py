"""Writing safetensors files tensor by tensor: the host holds one weight at a time.

Sizes are known before the data is, so the header is written first (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from slipstream.checkpoint.progress import Progress, silent
from slipstream.checkpoint.safetensors_source import DTYPES, INDEX_NAME, SINGLE_NAME

SHARD_BYTES = 5 << 30
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Described:
    """A tensor's name, dtype and shape."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its bytes."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Piece:
    """Tensors that are made together: `make()` gives one array for each of `tensors`."""

    tensors: tuple[Described, ...]
    make: Callable[[], Sequence[np.ndarray]]

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(tensor.size for tensor in self.tensors)


def write_pieces(
    pieces: Sequence[Piece], folder: Path, *, stage: str, progress: Progress = silent, shard_bytes: int = SHARD_BYTES
) -> int:
    """Write all tensors as model.safetensors, or as several files and an index; returns their bytes.

    `progress` gets `stage` with bytes. Raises ValueError where a piece makes something else than it says.
    """
    shards = list(_shards(pieces, shard_bytes))
    total, done = sum(piece.size for piece in pieces), 0
    index: dict[str, str] = {}
    progress(stage, 0, total)
    for number, shard in enumerate(shards, 1):
        name = SINGLE_NAME if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        with (folder / name).open("wb") as file:
            file.write(_header([tensor for piece in shard for tensor in piece.tensors]))
            for piece in shard:
                for tensor, array in zip(piece.tensors, piece.make(), strict=True):
                    if array.shape != tensor.shape or array.dtype != tensor.dtype:
                        raise ValueError(f"{tensor.name} is {array.dtype} {array.shape}, not as described")
                    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
                    index[tensor.name] = name
                done += piece.size
                progress(stage, done, total)
    if len(shards) > 1:
        content = {"metadata": {"total_size": total}, "weight_map": index}
        (folder / INDEX_NAME).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return total


def _shards(pieces: Iterable[Piece], most: int) -> Iterable[list[Piece]]:
    shard: list[Piece] = []
    size = 0
    for piece in pieces:
        if shard and size + piece.size > most:
            yield shard
            shard, size = [], 0
        shard.append(piece)
        size += piece.size
    yield shard


def _header(tensors: Iterable[Described]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        end = start + tensor.size
        header[tensor.name] = {"dtype": NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
