"""FP8 checkpoints (DeepSeek-V3, Qwen3 FP8, Mistral): float8_e4m3 weights with a scale for each block or one for all.

Stored for a module of [out, in]: `weight` [out, in], and `weight_scale_inv`, floats [out / 128, in / 128] (rounded up)
with `weight_block_size`, else `weight_scale` (or the same name as with blocks), of one scale or one for each output. A
value is number * scale, for both names. Where an `input_scale` (of static activation scales) is stored it is not used:
inputs are rounded with a scale for each token, or, with blocks, not at all, either of which is closer to the original.
Format: DeepSeek-V3's README_WEIGHTS.md, transformers' FineGrainedFP8Config.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from slipstream.checkpoint.quantized.method import FLOAT_TYPES, Names, Parts, Tensor, names_a_part
from slipstream.checkpoint.quantized.section import Section
from slipstream.errors import CheckpointError, UnsupportedModel
from slipstream.spec.source import Rounding, Scaled, ScaledData

SCALE_NAMES = (".weight_scale_inv", ".weight_scale")


@dataclass(frozen=True)
class Fp8:
    """`block`: of outputs and inputs that share a scale, None where a scale serves all, or each output."""

    block: tuple[int, int] | None
    skipped: tuple[str, ...]
    names: ClassVar[tuple[Names, ...]] = tuple(
        Names(".weight", scale, (".weight",), (".input_scale", ".activation_scale")) for scale in SCALE_NAMES
    )

    @classmethod
    def from_config(cls, section: Section) -> Fp8:
        """From quantization_config. Raises UnsupportedModel, UnknownConfigKeys or CheckpointError, naming the key."""
        section.choice("activation_scheme", ("dynamic", "static"), "dynamic")
        section.choice("fmt", ("e4m3", "float8_e4m3fn"), "e4m3")
        section.choice("scale_fmt", ("float", "ue8m0"), "float")  # says which values scales have, not their type
        section.choice("expert_dtype", ("fp8",), "fp8")
        section.choice("dequantize", (False,), False)
        block = section.sizes("weight_block_size")
        if block is not None and len(block) != 2:
            raise UnsupportedModel(f"config.json: {section.path}.weight_block_size must be two sizes, got {block}")
        skipped = section.strings("modules_to_not_convert", "ignored_layers")
        section.strings("modules_to_convert")
        section.finish()
        return cls(None if block is None else (block[0], block[1]), skipped)

    def skips(self, module: str) -> bool:
        """As `Method` says."""
        return names_a_part(module, self.skipped)

    def stored(self, module: str, parts: Parts) -> Scaled:
        """As `Method` says."""
        scale = next(parts[name] for name in SCALE_NAMES if name in parts)
        return float8(parts[".weight"], scale, self.block, None if self.block else "fp8_e4m3")


def float8(weight: Tensor, scale: Tensor, block: tuple[int, int] | None, rounding: Rounding | None) -> Scaled:
    """A float8 matrix with scales of blocks, or where `block` is None of the outputs, or with a single one."""
    weight.expect(("float8_e4m3fn",))
    scale.expect((*FLOAT_TYPES, "float8_e8m0fnu"))
    if len(weight.shape) != 2:
        raise CheckpointError(f"the tensor {weight.name!r} has shape {weight.shape}, not that of a matrix")
    out, inputs = weight.shape
    single = prod(scale.shape) == 1
    if block is None:
        block = (out, inputs) if single else (1, inputs)
    counts = (-(-out // block[0]), -(-inputs // block[1]))
    if scale.shape not in ((), (1,), counts) or prod(scale.shape) != prod(counts):
        raise CheckpointError(f"the tensor {scale.name!r} has shape {scale.shape}, not {counts}")
    powers = scale.dtype.name == "float8_e8m0fnu"
    scale_type = np.dtype(np.float32) if powers else scale.dtype

    def read() -> ScaledData:
        return ScaledData(weight.read(), scale.read().reshape(counts).astype(scale_type, copy=False))

    return Scaled("fp8_e4m3", (out, inputs), block, scale_type, False, rounding, read)
