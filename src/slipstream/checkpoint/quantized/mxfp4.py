"""MXFP4 checkpoints (gpt-oss): experts in float4_e2m1 with a power of two for each 32 inputs.

Stored for a weight NAME of [experts, in, out]: `NAME_blocks` uint8 [experts, out, in / 32, 16], two numbers a byte, the
first in the low half; `NAME_scales` uint8 [experts, out, in / 32], the exponent plus 127.
Format: OCP Microscaling Formats v1.0; gpt-oss's weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import ml_dtypes
import numpy as np

from slipstream.checkpoint.quantized.method import Names, Parts, names_a_part
from slipstream.checkpoint.quantized.section import Section
from slipstream.errors import CheckpointError
from slipstream.spec.source import Scaled, ScaledData

BLOCK = 32


@dataclass(frozen=True)
class Mxfp4:
    """`skipped`: names of modules that are not quantized; a star stands for anything between dots."""

    skipped: tuple[str, ...]
    names: ClassVar[tuple[Names, ...]] = (Names("", "_blocks", ("_scales",)),)

    @classmethod
    def from_config(cls, section: Section) -> Mxfp4:
        """From quantization_config. Raises UnsupportedModel, UnknownConfigKeys or CheckpointError, naming the key."""
        section.choice("dequantize", (False,), False)
        skipped = section.strings("modules_to_not_convert")
        section.finish()
        return cls(skipped)

    def skips(self, module: str) -> bool:
        """As `Method` says."""
        return names_a_part(module, self.skipped)

    def stored(self, module: str, parts: Parts) -> Scaled:
        """As `Method` says."""
        blocks = parts["_blocks"].expect(("uint8",))
        if len(blocks.shape) < 3 or blocks.shape[-1] != BLOCK // 2:
            raise CheckpointError(f"the tensor {blocks.name!r} has shape {blocks.shape}, not [..., {BLOCK // 2}]")
        scales = parts["_scales"].expect(("uint8",), blocks.shape[:-1])
        *before, out, count = scales.shape
        shape = (*before, count * BLOCK, out)

        def read() -> ScaledData:
            raw = blocks.read()
            numbers = np.empty((*raw.shape, 2), np.uint8)
            numbers[..., 0], numbers[..., 1] = raw & 15, raw >> 4
            values = numbers.reshape(*before, out, count * BLOCK).view(ml_dtypes.float4_e2m1fn)
            # bfloat16 has float32's exponents. Code 0, which is 2^-127, would be a subnormal number: devices take
            # it for 0, as they take the products with it.
            powers = scales.read().view(ml_dtypes.float8_e8m0fnu).astype(ml_dtypes.bfloat16)
            return ScaledData(values.swapaxes(-1, -2), powers.swapaxes(-1, -2))

        block = (*(1 for _ in before), BLOCK, 1)
        return Scaled("fp4_e2m1", shape, block, np.dtype(ml_dtypes.bfloat16), False, None, read)
