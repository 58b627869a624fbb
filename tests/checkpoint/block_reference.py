"""GGML's block types, one number at a time, written from the layouts in ggml's C structs. Slow, and plain to check."""

from __future__ import annotations

import struct


def _f16(block: bytes, at: int) -> float:
    return struct.unpack_from("<e", block, at)[0]


def _five_bits(block: bytes, at: int) -> list[int]:
    """32 five-bit numbers: a 32-bit word of high bits, then 16 bytes of two low nibbles."""
    high = struct.unpack_from("<I", block, at)[0]
    low = block[at + 4 : at + 20]
    return [(low[i % 16] >> (4 * (i // 16)) & 15) | (high >> i & 1) << 4 for i in range(32)]


def _nibbles(block: bytes, at: int) -> list[int]:
    return [block[at + i % 16] >> (4 * (i // 16)) & 15 for i in range(32)]


def q4_0(block: bytes) -> list[float]:
    return [_f16(block, 0) * (q - 8) for q in _nibbles(block, 2)]


def q4_1(block: bytes) -> list[float]:
    return [_f16(block, 0) * q + _f16(block, 2) for q in _nibbles(block, 4)]


def q5_0(block: bytes) -> list[float]:
    return [_f16(block, 0) * (q - 16) for q in _five_bits(block, 2)]


def q5_1(block: bytes) -> list[float]:
    return [_f16(block, 0) * q + _f16(block, 2) for q in _five_bits(block, 4)]


def q8_0(block: bytes) -> list[float]:
    return [_f16(block, 0) * q for q in struct.unpack_from("<32b", block, 2)]


def _scale_and_minimum(packed: bytes, group: int) -> tuple[int, int]:
    """The 6-bit scale and minimum of one of 8 groups, out of 12 bytes."""
    if group < 4:
        return packed[group] & 63, packed[group + 4] & 63
    high = packed[group - 4] >> 6, packed[group] >> 6
    return (packed[group + 4] & 15) | high[0] << 4, (packed[group + 4] >> 4) | high[1] << 4


def q4_k(block: bytes) -> list[float]:
    values = []
    for i in range(256):
        scale, minimum = _scale_and_minimum(block[4:16], i // 32)
        q = block[16 + i // 64 * 32 + i % 32] >> (4 * (i // 32 % 2)) & 15
        values.append(_f16(block, 0) * scale * q - _f16(block, 2) * minimum)
    return values


def q5_k(block: bytes) -> list[float]:
    values = []
    for i in range(256):
        scale, minimum = _scale_and_minimum(block[4:16], i // 32)
        q = block[48 + i // 64 * 32 + i % 32] >> (4 * (i // 32 % 2)) & 15 | (block[16 + i % 32] >> (i // 32) & 1) << 4
        values.append(_f16(block, 0) * scale * q - _f16(block, 2) * minimum)
    return values


def q6_k(block: bytes) -> list[float]:
    values = []
    for i in range(256):
        half, inside = divmod(i, 128)
        quarter, column = divmod(inside, 32)
        low = block[64 * half + 32 * (quarter % 2) + column] >> (4 * (quarter // 2)) & 15
        high = block[128 + 32 * half + column] >> (2 * quarter) & 3
        scale = struct.unpack_from("<b", block, 192 + i // 16)[0]
        values.append(_f16(block, 208) * scale * ((low | high << 4) - 32))
    return values


DEQUANTIZE = {
    "Q4_0": q4_0,
    "Q4_1": q4_1,
    "Q5_0": q5_0,
    "Q5_1": q5_1,
    "Q8_0": q8_0,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
}
