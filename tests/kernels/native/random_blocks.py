"""Random weights in every block type: every bit of the numbers is random, the scales are finite and of both signs."""

from __future__ import annotations

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from ml_dtypes import float8_e4m3fn
from numpy.typing import NDArray

from slipstream.kernels.native.pack import PACKINGS, scaled_blocks

OWN = ("int", "f8")
"""How the names of the kinds begin that are not GGUF's."""

# Where each type keeps its half-precision scales, in bytes from the start of a block.
_SCALES = {
    "q4_0": (0,),
    "q4_1": (0, 2),
    "q5_0": (0,),
    "q5_1": (0, 2),
    "q8_0": (0,),
    "q4_k": (0, 2),
    "q5_k": (0, 2),
    "q6_k": (208,),
}


def random_blocks(
    rng: np.random.Generator, kind: str, out: int, inputs: int, bits: int | None = None
) -> NDArray[np.uint8]:
    """Rows of blocks, uint8 [out, bytes of a row]. With `bits`, every byte but the scales' is that."""
    if kind in ("f32", "f16", "bf16"):
        values = rng.standard_normal((out, inputs)).astype(np.float32)
        if kind == "bf16":
            return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return values.astype(np.float16 if kind == "f16" else np.float32).view(np.uint8)
    packing = PACKINGS[kind]
    if kind.startswith(OWN):
        scales = rng.standard_normal((out, inputs // packing.numbers)).astype(np.float32) * np.float32(0.01)
        if kind.startswith("f8"):
            codes = rng.integers(0, 256, (out, inputs), np.uint8)
            codes[codes & 127 == 127] = 0  # not a number
            return scaled_blocks(kind, codes.view(float8_e4m3fn), scales)
        limit = 8 if kind.startswith("int4") else 128
        values = rng.integers(-limit, limit, (out, inputs), np.int8)
        zeros = rng.integers(-limit, limit, scales.shape).astype(np.float32)
        return scaled_blocks(kind, values, scales, -scales * zeros if kind.startswith("int8z") else None)
    blocks = rng.integers(0, 256, (out, inputs // packing.numbers, packing.size), np.uint8)
    if bits is not None:
        blocks[...] = bits
    for at in _SCALES[kind]:
        scales = (rng.standard_normal(blocks.shape[:2]) * 0.01).astype(np.float16)
        blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(out, -1)


def dequantized(kind: str, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The numbers of rows of blocks, float32 [out, inputs], by another way than the package's own."""
    if not kind.startswith(OWN):
        return np.asarray(dequantize(blocks, GGMLQuantizationType[kind.upper()]), np.float32)
    cut = blocks.reshape(len(blocks), -1, PACKINGS[kind].size)
    start = 8 if kind.startswith("int8z") else 4
    scales, bits = cut[..., :4].copy().view(np.float32), cut[..., start:]
    if kind.startswith("f8"):
        numbers = bits.view(float8_e4m3fn).astype(np.float32)
    elif kind.startswith("int8"):
        numbers = bits.view(np.int8).astype(np.float32)
    else:
        groups = bits.reshape(*bits.shape[:2], -1, 16)
        both = np.concatenate([groups & 15, groups >> 4], axis=-1)
        numbers = both.reshape(*bits.shape[:2], -1).astype(np.float32) - 8
    offsets = cut[..., 4:8].copy().view(np.float32) if start == 8 else np.float32(0)
    return (numbers * scales + offsets).reshape(len(blocks), -1)
