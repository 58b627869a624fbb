"""Random weights in GGUF's block types: every bit of the numbers is random, the scales are finite and of both signs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slipstream.kernels.native.pack import PACKINGS

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
    blocks = rng.integers(0, 256, (out, inputs // packing.numbers, packing.size), np.uint8)
    if bits is not None:
        blocks[...] = bits
    for at in _SCALES[kind]:
        scales = (rng.standard_normal(blocks.shape[:2]) * 0.01).astype(np.float16)
        blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(out, -1)
