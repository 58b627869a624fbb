"""safetensors files, single or indexed, as a Source.

The format: https://github.com/huggingface/safetensors#format. A header is checked here, within bounds, before any of
its numbers is used: its length against the file and a limit, every offset against the data, every size against its
shape. The data is mapped; a tensor is a view of it.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from slipstream.errors import CheckpointError
from slipstream.spec.source import FLOATS, Blocks

HEADER_LIMIT = 100_000_000
INDEX_LIMIT = 100_000_000
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies: `start` is from the file's first byte."""

    data: mmap.mmap
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int


class SafetensorsSource:
    """The tensors of one or several safetensors files. Raises CheckpointError for whatever is wrong with them."""

    def __init__(self, files: Collection[Path]) -> None:
        self._entries: dict[str, _Entry] = {}
        for path in files:
            for name, entry in _open(path).items():
                if name in self._entries:
                    raise CheckpointError(f"{path}: the tensor {name!r} is in another file as well")
                self._entries[name] = entry

    def names(self) -> Collection[str]:
        """All tensor names."""
        return self._entries.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, without reading the data."""
        return self._entries[name].shape

    def dtype(self, name: str) -> np.dtype:
        """The stored dtype."""
        return self._entries[name].dtype

    def read(self, name: str) -> np.ndarray:
        """The tensor in its stored dtype, a read-only view of the file."""
        entry = self._entries[name]
        return np.frombuffer(entry.data, entry.dtype, prod(entry.shape), entry.start).reshape(entry.shape)

    def blocks(self, name: str) -> Blocks | None:
        """The floats as they are stored; None for numbers of another type, and for a single one."""
        entry = self._entries[name]
        kind = next(kind for kind, dtype in DTYPES.items() if dtype == entry.dtype)
        if kind not in FLOATS or not entry.shape:
            return None
        return Blocks(kind, entry.shape, lambda: self.read(name).view(np.uint8))


def open_folder(folder: Path) -> SafetensorsSource:
    """The source of a folder with model.safetensors or an index. Raises CheckpointError if it has neither."""
    index = folder / INDEX_NAME
    if index.exists():
        return open_index(index)
    single = folder / SINGLE_NAME
    if not single.exists():
        raise CheckpointError(f"{folder} has no {SINGLE_NAME} and no {INDEX_NAME}")
    return SafetensorsSource([single])


def open_index(index: Path) -> SafetensorsSource:
    """The source of an index and the files beside it that it names."""
    names = shards_of(index)
    source = SafetensorsSource([index.parent / shard for shard in sorted(set(names.values()))])
    lost = sorted(names.keys() - source.names())
    if lost:
        raise CheckpointError(f"{index} names {len(lost)} tensors that its files do not hold, such as {lost[0]!r}")
    return source


def shards_of(index: Path) -> dict[str, str]:
    """Tensor name -> file name of an index. A file name that leads out of the folder is refused."""
    try:
        if index.stat().st_size > INDEX_LIMIT:
            raise CheckpointError(f"{index} is larger than {INDEX_LIMIT:,} bytes")
        content = json.loads(index.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{index} cannot be read: {error}") from error
    weights = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f"{index} has no weight_map")
    for name, file in weights.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or set(file) & set("/\\\0:"):
            raise CheckpointError(f"{index} sends the tensor {name!r} to {str(file)[:80]!r}: not a file of this folder")
    return weights


def _open(path: Path) -> dict[str, _Entry]:
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise CheckpointError(f"{path} cannot be opened: {error}") from error
    size = len(data)
    length = int.from_bytes(data[:8], "little") if size >= 8 else size
    if length > min(size - 8, HEADER_LIMIT):
        raise CheckpointError(
            f"{path}: a header of {length:,} bytes in a file of {size:,}: the file is cut off or not safetensors"
        )
    try:
        header = json.loads(data[8 : 8 + length], object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is not valid JSON ({error}): not a safetensors file") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is not a JSON object: not a safetensors file")
    header.pop("__metadata__", None)
    ranges: list[tuple[int, int, str]] = []
    entries: dict[str, _Entry] = {}
    for name, value in header.items():
        dtype, shape, start, end = _describe(path, name, value)
        if end > size - 8 - length:
            raise CheckpointError(
                f"{path}: the tensor {name[:80]!r} ends at byte {end:,} of {size - 8 - length:,}: "
                "the file is cut off; fetch it again"
            )
        ranges.append((start, end, name))
        entries[name] = _Entry(data, dtype, shape, 8 + length + start)
    ranges.sort()
    for (_, end, one), (start, _, two) in pairwise(ranges):
        if end > start:
            raise CheckpointError(f"{path}: the tensors {one[:80]!r} and {two[:80]!r} overlap")
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _describe(path: Path, name: str, value: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """dtype, shape, start and end (within the data) of one header entry."""

    def wrong(what: str) -> CheckpointError:
        return CheckpointError(f"{path}: the tensor {name[:80]!r} {what}")

    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong("is not described by dtype, shape and data_offsets")
    kind, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise wrong(f"has dtype {str(kind)[:80]!r}; those read are {', '.join(DTYPES)}")
    if not _naturals(shape) or len(shape) > 16:
        raise wrong("has a shape that is not a short list of sizes")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise wrong("has data_offsets that are not a start and an end")
    dtype = DTYPES[kind]
    start, end = offsets
    if prod(shape) * dtype.itemsize != end - start:
        raise wrong(f"has shape {tuple(shape)} of {kind} in {end - start:,} bytes")
    return dtype, tuple(shape), start, end


def _naturals(values: Any) -> bool:
    """Whether this is a list of sizes. The bound keeps their product small enough to compute."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)
