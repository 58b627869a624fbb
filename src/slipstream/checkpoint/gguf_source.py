"""A GGUF file as a Source: Hugging Face's names, shapes and values."""

from __future__ import annotations

from collections.abc import Collection

import ml_dtypes
import numpy as np

from slipstream.checkpoint.gguf_file import BlockType, GgufFile, TensorInfo
from slipstream.checkpoint.gguf_names import Heads, Row, translate
from slipstream.errors import CheckpointError
from slipstream.spec.source import Blocks

_DIRECT = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}


# Numbers that are dequantized at a time.
_CHUNK = 1 << 18


class GgufSource:
    """The tensors of one GGUF file. `read` dequantizes; `blocks` gives the stored blocks.

    `heads` is the model's (query, key) head counts, which the Q/K permutation depends on.
    A tensor that the architecture's table does not name keeps its GGUF name, so that `load` can report it.
    """

    def __init__(self, file: GgufFile, architecture: str, heads: tuple[int, int]) -> None:
        self._file = file
        self._heads: dict[Heads, int] = {"query": heads[0], "key": heads[1]}
        self._tensors: dict[str, tuple[TensorInfo, Row]] = {}
        for name, info in file.tensors.items():
            row = translate(architecture, name) or Row(name)
            count = self._heads[row.rotate] if row.rotate else 1
            if info.shape[0] % (2 * count) and row.rotate:
                raise CheckpointError(f"{file.path}: {name} of shape {info.shape} does not divide into {count} heads")
            self._tensors[row.name] = info, row

    def names(self) -> Collection[str]:
        """All tensor names."""
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, without reading the data."""
        return self._tensors[name][0].shape

    def blocks(self, name: str) -> Blocks | None:
        """The stored blocks, rows alone moved; None for tensors whose values were shifted (norms)."""
        info, row = self._tensors[name]
        if row.shift:
            return None
        return Blocks(info.kind.name, info.shape, lambda: self._rows(info, row))

    def read(self, name: str) -> np.ndarray:
        """The tensor: float16 and bfloat16 as stored, everything else as float32. May be a read-only view."""
        info, row = self._tensors[name]
        values = dequantize(info.kind, self._rows(info, row))
        if not row.shift:
            return values
        with np.errstate(all="ignore"):
            return values.astype(np.float32) - np.float32(row.shift)

    def _rows(self, info: TensorInfo, row: Row) -> np.ndarray:
        data = self._file.bytes_of(info.name)
        if row.rotate is None:
            return data
        # The converter interleaved the two halves of each head's rotary pairs; bring each half together again.
        # A row is a whole number of blocks, so this works on stored bytes. A bias (one axis) is a row of values.
        items = data if data.ndim > 1 else data.reshape(info.shape[0], -1)
        heads = self._heads[row.rotate]
        split = items.reshape(heads, items.shape[0] // heads // 2, 2, items.shape[1])
        return split.swapaxes(1, 2).reshape(data.shape)


def dequantize(kind: BlockType, data: np.ndarray) -> np.ndarray:
    """Stored rows, uint8 [rows..., bytes of a row], as numbers [rows..., n]. 16-bit floats stay as they are."""
    direct = _DIRECT.get(kind.name)
    if direct is not None:
        return data.view(direct)
    from gguf.constants import GGMLQuantizationType  # slow to import: only where there is something to dequantize
    from gguf.quants import dequantize as by_rows

    # The package works on 16 rows at a time and joins the pieces at the end. Long rows, made of as many blocks as stay
    # in the cache, and a result that is filled in place, are several times as fast.
    blocks = data.reshape(-1, kind.size)
    values = np.empty((len(blocks), kind.block), np.float32)
    code, step = GGMLQuantizationType(kind.code), _CHUNK // kind.block
    with np.errstate(all="ignore"):  # scales that are not finite give values that are not, here as in the model
        for start in range(0, len(blocks), step):
            part = blocks[start : start + step]
            values[start : start + step] = by_rows(part.reshape(1, -1), code).reshape(-1, kind.block)
    return values.reshape(*data.shape[:-1], -1)
