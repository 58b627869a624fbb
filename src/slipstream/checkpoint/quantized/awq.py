"""AWQ checkpoints (AutoAWQ, llm-awq's format "gemm"): int4 with zero points, in groups along the inputs.

Stored for a module of [out, in]: `qweight` int32 [in, out / 8] and `qzeros` int32 [groups, out / 8], numbers without
sign along the outputs in the order of `AWQ_ORDER`; `scales` [groups, out]. A value is (number - zero) * scale.
Format: AutoAWQ's WQLinear_GEMM; arXiv:2306.00978.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from slipstream.checkpoint.quantized.method import FLOAT_TYPES, Names, Parts, names_a_part
from slipstream.checkpoint.quantized.section import Section
from slipstream.errors import CheckpointError
from slipstream.quant.words import AWQ_ORDER, unpack
from slipstream.spec.source import Scaled, ScaledData

# By which code the weights may be run, and which modules that code joins.
INERT = ("backend", "do_fuse", "exllama_config", "fuse_max_seq_len", "modules_to_fuse")


@dataclass(frozen=True)
class Awq:
    """`group`: inputs that share a scale, None for all. `skipped`: names of modules that are not quantized."""

    group: int | None
    skipped: tuple[str, ...]
    names: ClassVar[tuple[Names, ...]] = (Names(".weight", ".qweight", (".qzeros", ".scales")),)

    @classmethod
    def from_config(cls, section: Section) -> Awq:
        """From quantization_config. Raises UnsupportedModel, UnknownConfigKeys or CheckpointError, naming the key."""
        section.choice("bits", (4,))
        section.choice("version", ("gemm", "GEMM"), "gemm")
        section.choice("zero_point", (True,), True)
        group = section.take("group_size", int, 128)
        if group != -1 and group < 1:
            raise CheckpointError(f"config.json: {section.path}.group_size must be -1 or at least 1, got {group}")
        skipped = section.strings("modules_to_not_convert")
        section.finish(INERT)
        return cls(None if group == -1 else group, skipped)

    def skips(self, module: str) -> bool:
        """As `Method` says."""
        return names_a_part(module, self.skipped)

    def stored(self, module: str, parts: Parts) -> Scaled:
        """As `Method` says."""
        words = parts[".qweight"].expect(("int32",))
        if len(words.shape) != 2:
            raise CheckpointError(f"the tensor {words.name!r} has shape {words.shape}, not that of a matrix")
        inputs, out = words.shape[0], words.shape[1] * 8
        group = self.group or inputs
        count = -(-inputs // group)
        zeros = parts[".qzeros"].expect(("int32",), (count, out // 8))
        scales = parts[".scales"].expect(FLOAT_TYPES, (count, out))

        def read() -> ScaledData:
            return ScaledData(_signed(words.read()), scales.read().T, _signed(zeros.read()))

        return Scaled("int4", (out, inputs), (1, group), scales.dtype, True, None, read)


def _signed(words: np.ndarray) -> np.ndarray:
    """int8 [out, ...], less 8."""
    return (unpack(words, 4, AWQ_ORDER) - np.uint8(8)).view(np.int8).T
