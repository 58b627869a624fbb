"""Weights as the native products read them: GGUF's blocks, or our own, regrouped without loss for panels of 16 outputs.

A panel holds 16 rows of the matrix, in sections one after another, each a multiple of 64 bytes: the low bits of the
numbers, their high bits, the scales of each group of 32 inputs, and the scales of each 8 groups. Within a section the
16 outputs are innermost, so that one load reads one thing for all of them:

    low 4 bits  [groups][4 words][16 outputs] of 4 bytes; word j: inputs 4j..4j+3 in low nibbles, 16+4j.. in high
    8 bits      [groups][8 words][16 outputs] of 4 bytes; word j holds inputs 4j..4j+3; signed numbers plus 128
    fifth bit   [groups][16 outputs] of 4 bytes; bit j of byte b belongs to input 4j+b
    bits 5, 6   [groups][2 words][16 outputs] of 4 bytes; bits 2j, 2j+1 of byte b of word h belong to input 16h+4j+b
    floats      [inputs][16 outputs]; after float8 the scales of each group of inputs that share them

The last panel is filled up with zeros. `packed.h` reads the same layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Section = NDArray[Any]
PANEL = 16
GROUP = 32
_NIBBLES = np.uint32(0x0F0F0F0F)
_BITS = np.uint32(0x01010101)
_PAIRS = np.uint32(0x03030303)


@dataclass(frozen=True)
class Packing:
    """How one kind is stored: `code` in packed.h, and per block the numbers, the bytes, and the packed sections.

    `sections` are (dtype, elements of one output, inputs that they serve), in order. `split` gives each section as
    [out, in / inputs, elements] for blocks [out, in / numbers, bytes]; `join` gives float32 [out, in] back.
    """

    code: int
    numbers: int
    size: int
    sections: tuple[tuple[str, int, int], ...]
    split: Callable[[Bytes], tuple[Section, ...]]
    join: Callable[..., NDArray[np.float32]]


def packed_bytes(kind: str, out: int, inputs: int) -> int:
    """The bytes of a packed weight [out, inputs]."""
    return -(-out // PANEL) * _panel_bytes(PACKINGS[kind], inputs)


def pack(kind: str, blocks: Bytes, inputs: int) -> Bytes:
    """Rows of blocks, uint8 [out, bytes of a row], packed: uint8 [packed_bytes(kind, out, inputs)].

    Raises ValueError if the rows do not have the bytes that `inputs` numbers take.
    """
    packing = PACKINGS[kind]
    if inputs % packing.numbers or blocks.ndim != 2 or blocks.shape[1] != inputs // packing.numbers * packing.size:
        raise ValueError(f"{kind}: rows of {inputs} numbers cannot have shape {blocks.shape}")
    out = blocks.shape[0]
    panels = -(-out // PANEL)
    if out % PANEL:
        blocks = np.concatenate([blocks, np.zeros((panels * PANEL - out, blocks.shape[1]), np.uint8)])
    parts = packing.split(np.ascontiguousarray(blocks).reshape(panels * PANEL, -1, packing.size))
    packed = np.zeros((panels, _panel_bytes(packing, inputs)), np.uint8)
    for part, target in zip(parts, _sections(packing, packed, inputs), strict=True):
        target[...] = part.reshape(panels, PANEL, -1, target.shape[2]).transpose(0, 2, 3, 1)
    return packed.reshape(-1)


def unpack(kind: str, packed: Bytes, out: int, inputs: int) -> NDArray[np.float32]:
    """The numbers of a packed weight, float32 [out, inputs]. Slow: for tests and for the path without the library."""
    packing = PACKINGS[kind]
    panels = packed.reshape(-(-out // PANEL), _panel_bytes(packing, inputs))
    rows = len(panels) * PANEL
    sections = (
        np.ascontiguousarray(section.transpose(0, 3, 1, 2)).reshape(rows, section.shape[1], section.shape[2])
        for section in _sections(packing, panels, inputs)
    )
    return packing.join(*sections).reshape(rows, inputs)[:out]


def _panel_bytes(packing: Packing, inputs: int) -> int:
    return sum(_section_bytes(section, inputs) for section in packing.sections)


def _section_bytes(section: tuple[str, int, int], inputs: int) -> int:
    dtype, elements, serves = section
    return -(-(inputs // serves * elements * PANEL * np.dtype(dtype).itemsize) // 64) * 64


def _sections(packing: Packing, panels: Bytes, inputs: int) -> Iterator[Section]:
    """Views [panel, item, element, output] of the sections of panels [panel, bytes]."""
    start = 0
    for section in packing.sections:
        dtype, elements, serves = section
        items = inputs // serves
        stored = panels[:, start : start + items * elements * PANEL * np.dtype(dtype).itemsize].view(dtype)
        yield stored.reshape(len(panels), items, elements, PANEL)
        start += _section_bytes(section, inputs)


def _view(blocks: Bytes, start: int, stop: int, dtype: str) -> Section:
    """Bytes start..stop of each block as [out, block, elements]. Copied only where they are not aligned."""
    size = np.dtype(dtype).itemsize
    if start % size == 0 and blocks.shape[2] % size == 0:
        return blocks.view(dtype)[..., start // size : stop // size]
    return np.ascontiguousarray(blocks[..., start:stop]).view(dtype)


# ---- the simple kinds: blocks of 32 with a half-precision scale, and perhaps a minimum and a fifth bit


def _spread() -> NDArray[np.uint32]:
    """For each byte of fifth bits: bits 0-3 as bit 0 of four bytes, bits 4-7 as bit 1 of them."""
    byte = np.arange(256, dtype=np.uint32)
    words = [((byte >> b & 1) | (byte >> (4 + b) & 1) << 1) << (8 * b) for b in range(4)]
    return (words[0] | words[1] | words[2] | words[3]).astype(np.uint32)


_SPREAD = _spread()


def _fifth_bits(blocks: Bytes, start: int) -> Section:
    bits = [_SPREAD[blocks[..., start + i]] << np.uint32(2 * i) for i in range(4)]
    return (bits[0] | bits[1] | bits[2] | bits[3])[..., None]


def _split_simple(scales: int, fifth: bool) -> Callable[[Bytes], tuple[Section, ...]]:
    def split(blocks: Bytes) -> tuple[Section, ...]:
        start = 2 * scales + 4 * fifth
        low, scale = _view(blocks, start, start + 16, "<u4"), _view(blocks, 0, 2 * scales, "<f2")
        return (low, _fifth_bits(blocks, 2 * scales), scale) if fifth else (low, scale)

    return split


def _split_q8_0(blocks: Bytes) -> tuple[Section, ...]:
    return _view(blocks, 2, 34, "<u4") ^ np.uint32(0x80808080), _view(blocks, 0, 2, "<f2")


def _numbers(low: Section, fifth: Section | None = None) -> NDArray[np.float32]:
    """Numbers without sign [rows, groups, 32] of nibbles [rows, groups, 4 words] and their fifth bits."""
    nibbles = low.view(np.uint8)
    numbers = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1)
    if fifth is not None:
        bits = [fifth.view(np.uint8) >> j & 1 for j in range(8)]
        numbers |= np.concatenate(bits, axis=-1) << 4
    return numbers.astype(np.float32)


def _join_simple(zero: int, fifth: bool) -> Callable[..., NDArray[np.float32]]:
    def join(*sections: Section) -> NDArray[np.float32]:
        scales = sections[-1].astype(np.float32)
        numbers = _numbers(sections[0], sections[1] if fifth else None)
        if zero:
            return (numbers - zero) * scales
        return numbers * scales[..., :1] + scales[..., 1:]

    return join


def _join_q8_0(words: Section, scales: Section) -> NDArray[np.float32]:
    return (words.view(np.uint8).astype(np.float32) - 128) * scales.astype(np.float32)


# ---- the K kinds: blocks of 256, in 8 groups of 32 with small integer scales


def _per_group(words: list[NDArray[np.uint32]]) -> NDArray[np.uint32]:
    """8 arrays [out, block, n], one a group, as [out, groups, n]."""
    stacked = np.stack(words, axis=2)
    return stacked.reshape(stacked.shape[0], -1, stacked.shape[3])


def _nibble_words(numbers: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """[..., 8 words of 4 numbers under 16] as [..., 4 words of nibbles]."""
    return numbers[..., :4] | numbers[..., 4:] << np.uint32(4)


def _small_scales(blocks: Bytes) -> Section:
    """The 6-bit scales and minimums of 8 groups, out of bytes 4..16: uint8 [out, groups, 2]."""
    packed = blocks[..., 4:16]
    first, second, third = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scale = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=-1)
    minimum = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=-1)
    return np.stack([scale, minimum], axis=-1).reshape(len(blocks), -1, 2)


def _split_four_or_five(fifth: bool) -> Callable[[Bytes], tuple[Section, ...]]:
    def split(blocks: Bytes) -> tuple[Section, ...]:
        start = 48 if fifth else 16
        words = _view(blocks, start, start + 128, "<u4")
        pairs = [words[..., 8 * i : 8 * i + 8] for i in range(4)]  # a pair of groups shares 32 bytes
        low = _per_group([_nibble_words(pairs[g // 2] >> np.uint32(4 * (g % 2)) & _NIBBLES) for g in range(8)])
        scales, supers = _small_scales(blocks), _view(blocks, 0, 4, "<f2")
        if not fifth:
            return low, scales, supers
        bits = _view(blocks, 16, 48, "<u4")
        places = np.arange(8, dtype=np.uint32)
        high = [
            np.bitwise_or.reduce((bits >> np.uint32(g) & _BITS) << places, axis=-1, keepdims=True) for g in range(8)
        ]
        return low, _per_group(high), scales, supers

    return split


def _join_four_or_five(fifth: bool) -> Callable[..., NDArray[np.float32]]:
    def join(*sections: Section) -> NDArray[np.float32]:
        small, supers = (section.astype(np.float32) for section in sections[-2:])
        scales = small * np.repeat(supers, 8, axis=1)
        return _numbers(sections[0], sections[1] if fifth else None) * scales[..., :1] - scales[..., 1:]

    return join


def _split_q6_k(blocks: Bytes) -> tuple[Section, ...]:
    low, high = _view(blocks, 0, 128, "<u4"), _view(blocks, 128, 192, "<u4")
    nibbles, pairs = [], []
    for g in range(8):
        half, quarter = divmod(g, 4)
        start = 16 * half + 8 * (quarter % 2)
        nibbles.append(_nibble_words(low[..., start : start + 8] >> np.uint32(4 * (quarter // 2)) & _NIBBLES))
        bits = high[..., 8 * half : 8 * half + 8] >> np.uint32(2 * quarter) & _PAIRS
        shifted = bits.reshape(*bits.shape[:-1], 2, 4) << np.arange(0, 8, 2, dtype=np.uint32)
        pairs.append(np.bitwise_or.reduce(shifted, axis=-1))
    scales = _view(blocks, 192, 208, "i1").reshape(len(blocks), -1, 2)
    return _per_group(nibbles), _per_group(pairs), scales, _view(blocks, 208, 210, "<f2")


def _join_q6_k(low: Section, high: Section, scales: Section, supers: Section) -> NDArray[np.float32]:
    pairs = high.view(np.uint8).reshape(*high.shape[:2], 2, 1, 4) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    numbers = _numbers(low) + 16 * pairs.reshape(*high.shape[:2], 32).astype(np.float32) - 32
    scale = scales.astype(np.float32) * np.repeat(supers.astype(np.float32), 8, axis=1)
    return numbers * np.repeat(scale, 16, axis=-1)


# ---- numbers of our own: blocks of a float32 scale, with zero points an offset, and then the numbers, 4-bit ones as
# q4_0 has them


def scaled_blocks(
    kind: str, values: NDArray[Any], scales: NDArray[np.float32], offsets: NDArray[np.float32] | None = None
) -> Bytes:
    """Rows of blocks for `pack`: uint8 [out, bytes of a row].

    `values` [out, inputs] are within -128..127 for int8 kinds, within -8..7 for int4 kinds, and float8_e4m3 for f8
    kinds; the number in the kind's name says how many inputs share one of `scales` [out, inputs / that]. A scale a row:
    repeat it. `offsets`, of the same shape, are what is added to scale times number, for int8z kinds and no others.
    Raises ValueError where shapes or values do not fit.
    """
    packing = PACKINGS[kind]
    out, inputs = values.shape
    if inputs % packing.numbers or scales.shape != (out, inputs // packing.numbers):
        raise ValueError(f"{kind}: numbers {values.shape} and scales {scales.shape} do not fit")
    numbers = values.reshape(out, -1, packing.numbers)
    if kind.startswith("int4"):
        if values.size and (values.min() < -8 or values.max() > 7):
            raise ValueError(f"{kind}: numbers must be within -8..7")
        halves = (numbers + np.int8(8)).view(np.uint8).reshape(out, numbers.shape[1], -1, 2, 16)
        numbers = (halves[..., 0, :] | halves[..., 1, :] << 4).reshape(out, numbers.shape[1], -1).view(np.int8)
    shared = [np.ascontiguousarray(one, np.float32) for one in (scales, offsets) if one is not None]
    if len(shared) != (2 if kind.startswith("int8z") else 1):
        raise ValueError(f"{kind}: {len(shared)} numbers that inputs share do not fit")
    start = np.stack(shared, axis=-1).view(np.uint8)
    return np.concatenate([start, np.ascontiguousarray(numbers).view(np.uint8)], axis=-1).reshape(out, -1)


def _scaled(code: int, bits: int, shared: int, *, offset: bool = False) -> Packing:
    """Numbers of 4 or 8 bits, `shared` of them with one scale, and one `offset` where they have it."""
    words, zero, own = bits, 1 << (bits - 1), 1 + offset

    def split(blocks: Bytes) -> tuple[Section, ...]:
        numbers = _view(blocks, 4 * own, blocks.shape[2], "<u4").reshape(len(blocks), -1, words)
        return numbers ^ np.uint32(0x80808080 if bits == 8 else 0), _view(blocks, 0, 4 * own, "<f4")

    def join(low: Section, scales: Section) -> NDArray[np.float32]:
        numbers = _numbers(low) if bits == 4 else low.view(np.uint8).astype(np.float32)
        each = np.repeat(scales, shared // GROUP, axis=1)
        joined: NDArray[np.float32] = (numbers - zero) * each[..., :1]
        return joined + each[..., 1:] if offset else joined

    sections = ("<u4", words, 32), ("<f4", own, shared)
    return Packing(code, shared, 4 * own + shared * bits // 8, sections, split, join)


def _float8(code: int, shared: int) -> Packing:
    """float8_e4m3, `shared` of them with one scale. There is no number that is none: its code counts as 480."""

    def split(blocks: Bytes) -> tuple[Section, ...]:
        codes = np.ascontiguousarray(blocks[..., 4:]).reshape(len(blocks), -1, 1)
        return codes, _view(blocks, 0, 4, "<f4")

    def join(codes: Section, scales: Section) -> NDArray[np.float32]:
        values: NDArray[np.float32] = _FLOAT8[codes] * np.repeat(scales, shared, axis=1)
        return values

    return Packing(code, shared, 4 + shared, (("u1", 1, 1), ("<f4", 1, shared)), split, join)


_CODES = np.arange(256, dtype=np.uint8)
_HALVES = _CODES.view(np.int8).astype(np.int16).view(np.uint16) << np.uint16(7) & np.uint16(0xBF80)
_FLOAT8 = _HALVES.view(np.float16).astype(np.float32) * 256  # as the kernels make them of the codes


# ---- floats


def _floats(code: int, dtype: str) -> Packing:
    size = np.dtype(dtype).itemsize

    def split(blocks: Bytes) -> tuple[Section, ...]:
        return (blocks.view(dtype),)

    def join(values: Section) -> NDArray[np.float32]:
        if dtype == "<u2":  # bfloat16: the upper half of a float32
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32)

    return Packing(code, 1, size, ((dtype, 1, 1),), split, join)


_LOW, _FIFTH, _SMALL, _SUPERS = ("<u4", 4, 32), ("<u4", 1, 32), ("u1", 2, 32), ("<f2", 2, 256)
_ONE, _TWO = ("<f2", 1, 32), ("<f2", 2, 32)

PACKINGS = {
    "q4_0": Packing(0, 32, 18, (_LOW, _ONE), _split_simple(1, False), _join_simple(8, False)),
    "q4_1": Packing(1, 32, 20, (_LOW, _TWO), _split_simple(2, False), _join_simple(0, False)),
    "q5_0": Packing(2, 32, 22, (_LOW, _FIFTH, _ONE), _split_simple(1, True), _join_simple(16, True)),
    "q5_1": Packing(3, 32, 24, (_LOW, _FIFTH, _TWO), _split_simple(2, True), _join_simple(0, True)),
    "q8_0": Packing(4, 32, 34, (("<u4", 8, 32), _ONE), _split_q8_0, _join_q8_0),
    "q4_k": Packing(5, 256, 144, (_LOW, _SMALL, _SUPERS), _split_four_or_five(False), _join_four_or_five(False)),
    "q5_k": Packing(6, 256, 176, (_LOW, _FIFTH, _SMALL, _SUPERS), _split_four_or_five(True), _join_four_or_five(True)),
    "q6_k": Packing(7, 256, 210, (_LOW, ("<u4", 2, 32), ("i1", 2, 32), ("<f2", 1, 256)), _split_q6_k, _join_q6_k),
    "f32": _floats(8, "<f4"),
    "f16": _floats(9, "<f2"),
    "bf16": _floats(10, "<u2"),
    "int8_32": _scaled(11, 8, 32),
    "int8_64": _scaled(12, 8, 64),
    "int8_128": _scaled(13, 8, 128),
    "int4_32": _scaled(14, 4, 32),
    "int4_64": _scaled(15, 4, 64),
    "int4_128": _scaled(16, 4, 128),
    "int8z_32": _scaled(17, 8, 32, offset=True),
    "int8z_64": _scaled(18, 8, 64, offset=True),
    "int8z_128": _scaled(19, 8, 128, offset=True),
    "f8_32": _float8(20, 32),
    "f8_64": _float8(21, 64),
    "f8_128": _float8(22, 128),
}
