"""A GGUF file as a Source: Hugging Face's names, shapes and values."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import ml_dtypes
import numpy as np

from slipstream.checkpoint.gguf_file import BlockType, GgufFile, TensorInfo
from slipstream.checkpoint.gguf_names import JOINS, Heads, Join, Row, translate
from slipstream.errors import CheckpointError
from slipstream.spec.source import Blocks, Scaled, ScaledData, Stored

_DIRECT = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}


_MXFP4, _MXFP4_BLOCK = "MXFP4", 32
# Numbers that are dequantized at a time.
_CHUNK = 1 << 18


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the file, or the part of it that is one expert's."""

    info: TensorInfo
    row: Row
    expert: int | None = None

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """As the file has it."""
        return self.info.shape if self.expert is None else self.info.shape[1:]

    @property
    def shape(self) -> tuple[int, ...]:
        """As Hugging Face has it."""
        shape = self.stored_shape
        return (*shape[:-2], shape[-1], shape[-2]) if self.row.turned else shape


@dataclass(frozen=True)
class _Joined:
    """Two tensors of the file as one."""

    first: _Tensor
    second: _Tensor
    join: Join


class GgufSource:
    """The tensors of one GGUF file. `read` dequantizes; `blocks` gives the stored blocks.

    `heads` is the model's (query, key) head counts, which the Q/K permutation depends on.
    A tensor that the architecture's table does not name keeps its GGUF name, so that `load` can report it.
    """

    def __init__(self, file: GgufFile, architecture: str, heads: tuple[int, int]) -> None:
        self._file = file
        self._heads: dict[Heads, int] = {"query": heads[0], "key": heads[1]}
        self._tensors: dict[str, _Tensor | _Joined] = {}
        for name, info in file.tensors.items():
            row = translate(architecture, name) or Row(name)
            count = self._heads[row.rotate] if row.rotate else 1
            if info.shape[0] % (2 * count) and row.rotate:
                raise CheckpointError(f"{file.path}: {name} of shape {info.shape} does not divide into {count} heads")
            if (len(info.shape) < 2 and row.turned) or (len(info.shape) < 3 and "{}" in row.name):
                raise CheckpointError(f"{file.path}: {name} has shape {info.shape}, which is not that of experts")
            if "{}" in row.name:
                for expert in range(info.shape[0]):
                    self._tensors[row.name.format(expert)] = _Tensor(info, row, expert)
            else:
                self._tensors[row.name] = _Tensor(info, row)
        for join in JOINS.get(architecture, ()):
            self._join(join)

    def _join(self, join: Join) -> None:
        for name in [name for name in self._tensors if name.endswith(join.first)]:
            at = name.removesuffix(join.first)
            first, second = self._tensors[name], self._tensors.get(at + join.second)
            if not isinstance(first, _Tensor) or not isinstance(second, _Tensor):
                continue
            if len({len(first.shape), len(second.shape)}) > 1 or first.shape[0] != second.shape[0]:
                raise CheckpointError(
                    f"{self._file.path}: {first.info.name} of shape {first.shape} does not fit {second.info.name} "
                    f"of shape {second.shape}"
                )
            del self._tensors[name], self._tensors[at + join.second]
            self._tensors[at + join.whole] = _Joined(first, second, join)

    def names(self) -> Collection[str]:
        """All tensor names."""
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, without reading the data."""
        found = self._tensors[name]
        if isinstance(found, _Joined):
            return found.join.shape(found.first.shape, found.second.shape)
        return found.shape

    def blocks(self, name: str) -> Stored | None:
        """The stored blocks, rows alone moved; None for values that are not those of the file's rows (norms, joined).

        MXFP4 is given as numbers and scales, as checkpoints in safetensors have it.
        """
        found = self._tensors[name]
        if isinstance(found, _Joined):
            if {found.first.info.kind.name, found.second.info.kind.name} != {_MXFP4} or len(found.first.shape) < 3:
                return None
            return _scaled(self.shape(name), partial(self._joined_numbers, found), turned=True)
        if found.info.kind.name == _MXFP4 and not found.row.shift:
            return _scaled(found.shape, partial(self._numbers, found), turned=found.row.turned)
        if found.row.shift or found.row.turned:
            return None
        return Blocks(found.info.kind.name, found.shape, lambda: self._rows(found))

    def read(self, name: str) -> np.ndarray:
        """The tensor: float16 and bfloat16 as stored, everything else as float32. May be a read-only view."""
        found = self._tensors[name]
        if isinstance(found, _Joined):
            return found.join.values(self._values(found.first), self._values(found.second))
        return self._values(found)

    def _values(self, found: _Tensor) -> np.ndarray:
        values = dequantize(found.info.kind, self._rows(found))
        if found.row.turned:
            return values.swapaxes(-1, -2)
        if not found.row.shift:
            return values
        with np.errstate(all="ignore"):
            return values.astype(np.float32) - np.float32(found.row.shift)

    def _rows(self, found: _Tensor) -> np.ndarray:
        info, row = found.info, found.row
        data = self._file.bytes_of(info.name)
        if found.expert is not None:
            data = data[found.expert : found.expert + 1].reshape(data.shape[1:])
        if row.rotate is None:
            return data
        # The converter interleaved the two halves of each head's rotary pairs; bring each half together again.
        # A row is a whole number of blocks, so this works on stored bytes. A bias (one axis) is a row of values.
        items = data if data.ndim > 1 else data.reshape(info.shape[0], -1)
        heads = self._heads[row.rotate]
        split = items.reshape(heads, items.shape[0] // heads // 2, 2, items.shape[1])
        return split.swapaxes(1, 2).reshape(data.shape)

    def _numbers(self, found: _Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of MXFP4 blocks, a code a byte, and the codes of their scales, in Hugging Face's order."""
        *rows, size = found.stored_shape
        blocks = self._rows(found).reshape(*rows, size // _MXFP4_BLOCK, 1 + _MXFP4_BLOCK // 2)
        # A byte holds a number of the block's first half and one of its second.
        codes = np.concatenate((blocks[..., 1:] & 15, blocks[..., 1:] >> 4), -1).reshape(found.stored_shape)
        scales = blocks[..., 0]
        return (codes.swapaxes(-1, -2), scales.swapaxes(-1, -2)) if found.row.turned else (codes, scales)

    def _joined_numbers(self, found: _Joined) -> tuple[np.ndarray, np.ndarray]:
        codes, scales = zip(self._numbers(found.first), self._numbers(found.second), strict=True)
        return found.join.values(*codes), found.join.values(*scales)


def _scaled(shape: tuple[int, ...], numbers: Callable[[], tuple[np.ndarray, np.ndarray]], *, turned: bool) -> Scaled:
    """Numbers of 4 bits that share powers of two along the last axis, or where it is `turned` the one before."""

    def read() -> ScaledData:
        codes, scales = (np.ascontiguousarray(array) for array in numbers())
        powers = scales.view(ml_dtypes.float8_e8m0fnu).astype(ml_dtypes.bfloat16)
        return ScaledData(codes.view(ml_dtypes.float4_e2m1fn), powers)

    before = (1,) * (len(shape) - 2)
    block = (*before, _MXFP4_BLOCK, 1) if turned else (*before, 1, _MXFP4_BLOCK)
    return Scaled("fp4_e2m1", shape, block, np.dtype(ml_dtypes.bfloat16), False, None, read)


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
