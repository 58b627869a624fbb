"""A strict reader of GGUF files, versions 2 and 3, little endian.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Everything in the file is doubted: each count and
length is checked against the bytes that are left before anything is allocated for it, so that a hostile file costs
at most a few times its own header, and the header is bounded. Tensor data is mapped, not read.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from types import MappingProxyType

import numpy as np

from slipstream.errors import CheckpointError

# Bytes of metadata and tensor descriptions that are accepted. The largest vocabularies need some 20 MB.
HEADER_LIMIT = 256 << 20
ALIGNMENT_LIMIT = 1 << 16
MAX_AXES = 4

Scalar = int | float | bool | str
Value = Scalar | tuple[str, ...] | np.ndarray


@dataclass(frozen=True)
class BlockType:
    """A way to store numbers: `block` numbers in `size` bytes. `code` is the format's number for it."""

    name: str
    code: int
    block: int
    size: int


BLOCK_TYPES = {
    kind.code: kind
    for kind in (
        BlockType("F32", 0, 1, 4),
        BlockType("F16", 1, 1, 2),
        BlockType("Q4_0", 2, 32, 18),
        BlockType("Q4_1", 3, 32, 20),
        BlockType("Q5_0", 6, 32, 22),
        BlockType("Q5_1", 7, 32, 24),
        BlockType("Q8_0", 8, 32, 34),
        BlockType("Q4_K", 12, 256, 144),
        BlockType("Q5_K", 13, 256, 176),
        BlockType("Q6_K", 14, 256, 210),
        BlockType("BF16", 30, 1, 2),
        BlockType("MXFP4", 39, 32, 17),
    )
}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's description. `shape` is outermost axis first (the file has it reversed); `offset` is from byte 0."""

    name: str
    kind: BlockType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


# The format's numbers for value types, as numpy and struct read them; strings (8) and arrays (9) are apart.
_NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
_FORMATS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING, _ARRAY = 8, 9
_U32, _U64 = _FORMATS[4], _FORMATS[10]


class _Cursor:
    """A position in the header that never passes its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.at = 0
        self.end = min(len(data), HEADER_LIMIT)

    def fail(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {what} (at byte {self.at}): the file is damaged or not a GGUF file")

    def need(self, count: int, what: str) -> None:
        if count > self.end - self.at:
            limit = "the file's end" if self.end == len(self.data) else f"the limit of {HEADER_LIMIT >> 20} MiB"
            raise self.fail(f"{what} needs {count:,} bytes and passes {limit}")

    def number(self, kind: int, what: str) -> int | float | bool:
        layout = _FORMATS[kind]
        self.need(layout.size, what)
        value: int | float | bool = layout.unpack_from(self.data, self.at)[0]
        self.at += layout.size
        return value

    def count(self, what: str, smallest: int) -> int:
        """A 64-bit count of things that take at least `smallest` bytes each."""
        count = int(self.number(10, what))
        self.need(count * smallest, f"{what} of {count:,}")
        return count

    def text(self, what: str) -> str:
        length = self.count(f"the length of {what}", 1)
        raw = self.data[self.at : self.at + length]
        try:
            value = raw.decode()
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None
        self.at += length
        return value

    def texts(self, count: int, what: str) -> tuple[str, ...]:
        # The vocabulary's quarter of a million strings pass here: no call a string but the two that must be.
        data, at, end, length_of = self.data, self.at, self.end, _U64.unpack_from
        values: list[str] = []
        append = values.append
        try:
            for _ in range(count):
                stop = at + 8 + length_of(data, at)[0]
                if stop > end:
                    raise self.fail(f"string {len(values)} of {what} passes the end of the header")
                append(data[at + 8 : stop].decode())
                at = stop
        except struct.error:
            raise self.fail(f"{what} is cut off") from None
        except UnicodeDecodeError:
            raise self.fail(f"string {len(values)} of {what} is not UTF-8") from None
        self.at = at
        return tuple(values)

    def value(self, kind: int, what: str) -> Value:
        if kind == _STRING:
            return self.text(what)
        if kind in _FORMATS:
            return self.number(kind, what)
        if kind != _ARRAY:
            raise self.fail(f"{what} has the unknown type {kind}")
        inner = int(self.number(4, f"the element type of {what}"))
        if inner == _STRING:
            return self.texts(self.count(f"the array {what}", 8), what)
        if inner not in _NUMBERS:
            raise self.fail(f"{what} is an array of {'arrays' if inner == _ARRAY else f'the unknown type {inner}'}")
        dtype = np.dtype(_NUMBERS[inner])
        count = self.count(f"the array {what}", dtype.itemsize)
        # Copied, so that a value neither keeps the mapping alive nor is unaligned. Bytes that are to be booleans may
        # hold anything: they are compared, not reinterpreted.
        raw = np.frombuffer(self.data, np.uint8, count * dtype.itemsize, self.at)
        self.at += count * dtype.itemsize
        return raw != 0 if dtype == np.bool_ else raw.view(dtype).copy()


class GgufFile:
    """An opened GGUF file: `metadata`, `tensors` by name, and their bytes.

    Raises CheckpointError for whatever is wrong with the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise CheckpointError(f"{path} cannot be opened: {error}") from error
        cursor = _Cursor(path, self._data)
        tensor_count, value_count = _read_counts(cursor)
        self.metadata: Mapping[str, Value] = MappingProxyType(_read_metadata(cursor, value_count))
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(self._read_tensors(cursor, tensor_count))

    def bytes_of(self, name: str) -> np.ndarray:
        """The stored bytes of a tensor, a read-only uint8 view of the file shaped [rows..., bytes of a row]."""
        info = self.tensors[name]
        row = info.shape[-1] // info.kind.block * info.kind.size
        return np.frombuffer(self._data, np.uint8, info.nbytes, info.offset).reshape(*info.shape[:-1], row)

    def _read_tensors(self, cursor: _Cursor, count: int) -> dict[str, TensorInfo]:
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= ALIGNMENT_LIMIT or alignment & (alignment - 1):
            raise CheckpointError(
                f"{self.path}: general.alignment is {alignment!r}, not a power of two up to {ALIGNMENT_LIMIT}"
            )
        found = [_read_tensor(cursor) for _ in range(count)]
        start = -(-cursor.at // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for info in found:
            if info.name in tensors:
                raise CheckpointError(f"{self.path}: the tensor {info.name!r} is there twice")
            if info.offset % alignment:
                raise CheckpointError(f"{self.path}: the tensor {info.name!r} is not aligned to {alignment} bytes")
            end = start + info.offset + info.nbytes
            if end > len(self._data):
                raise CheckpointError(
                    f"{self.path}: the tensor {info.name!r} ends at byte {end:,} of {len(self._data):,}: "
                    "the file is cut off; fetch it again"
                )
            tensors[info.name] = TensorInfo(info.name, info.kind, info.shape, start + info.offset, info.nbytes)
        by_offset = sorted(tensors.values(), key=lambda info: info.offset)
        for one, two in pairwise(by_offset):
            if one.offset + one.nbytes > two.offset:
                raise CheckpointError(f"{self.path}: the tensors {one.name!r} and {two.name!r} overlap")
        return tensors


def _read_counts(cursor: _Cursor) -> tuple[int, int]:
    """The number of tensors and of metadata entries, after the magic and the version."""
    if cursor.data[:4] != b"GGUF":
        raise CheckpointError(f"{cursor.path} is not a GGUF file: it starts with {cursor.data[:4]!r}")
    cursor.at = 4
    version = int(cursor.number(4, "the version"))
    if version and version & 0xFFFF == 0:
        raise CheckpointError(f"{cursor.path} is a big-endian GGUF file: convert it to little endian")
    if version not in (2, 3):
        raise CheckpointError(f"{cursor.path} has GGUF version {version}; versions 2 and 3 are read: convert it again")
    # A tensor's description takes 32 bytes at the least (8 name, 4 axes, 8 one axis, 4 type, 8 offset), an entry 13.
    tensors = cursor.count("the tensor count", 32)
    return tensors, cursor.count("the metadata count", 13)


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for _ in range(count):
        key = cursor.text("a metadata key")
        if key in metadata:
            raise cursor.fail(f"the metadata key {_short(key)} is there twice")
        metadata[key] = cursor.value(int(cursor.number(4, f"the type of {_short(key)}")), _short(key))
    return metadata


def _read_tensor(cursor: _Cursor) -> TensorInfo:
    """One tensor's description; its offset is still from the start of the data."""
    name = cursor.text("a tensor's name")
    label = _short(name)
    axes = int(cursor.number(4, f"the axes of {label}"))
    if not 1 <= axes <= MAX_AXES:
        raise cursor.fail(f"the tensor {label} has {axes} axes")
    shape = tuple(int(cursor.number(10, f"the shape of {label}")) for _ in range(axes))[::-1]
    code = int(cursor.number(4, f"the type of {label}"))
    kind = BLOCK_TYPES.get(code)
    if kind is None:
        names = ", ".join(sorted(known.name for known in BLOCK_TYPES.values()))
        raise CheckpointError(f"{cursor.path}: the tensor {label} has type {_type_name(code)}; those read are {names}")
    offset = int(cursor.number(10, f"the offset of {label}"))
    if 0 in shape or shape[-1] % kind.block:
        raise cursor.fail(f"the tensor {label} of type {kind.name} has the impossible shape {shape}")
    return TensorInfo(name, kind, shape, offset, prod(shape) // kind.block * kind.size)


def _type_name(code: int) -> str:
    from gguf.constants import GGMLQuantizationType  # slow to import, and needed only for this message

    try:
        return str(GGMLQuantizationType(code).name)
    except ValueError:
        return str(code)


def _short(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:77] + "...")
