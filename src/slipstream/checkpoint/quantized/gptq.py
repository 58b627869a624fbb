"""GPTQ checkpoints (AutoGPTQ, GPTQModel): int4 and int8 in groups along the inputs.

Stored for a module of [out, in], w bits a number: `qweight` int32 [in * w / 32, out], numbers without sign along the
inputs; `qzeros` int32 [groups, out * w / 32], along the outputs; `scales` [groups, out]; `g_idx` int32 [in], the group
of each input. A value is (number - zero) * scale. Checkpoints of version 1, which is the default, store zero - 1.
Format: AutoGPTQ's qlinear modules; GPTQModel's `checkpoint_format`.

With desc_act the inputs of a group are not neighbours. If `g_idx` says so the weight is dequantized when it is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from slipstream.checkpoint.quantized.method import FLOAT_TYPES, Names, Parts, Values
from slipstream.checkpoint.quantized.section import Section
from slipstream.errors import CheckpointError
from slipstream.quant.words import unpack
from slipstream.spec.source import Number, Scaled, ScaledData

# How the weights were found, and by which code they may be run.
INERT = (
    "act_group_aware",
    "backend",
    "batch_size",
    "block_name_to_quantize",
    "cache_block_outputs",
    "damp_auto_increment",
    "damp_percent",
    "dataset",
    "desc_act",  # what it says, g_idx says too
    "exllama_config",
    "is_marlin_format",
    "lm_head",
    "max_input_length",
    "meta",
    "model_file_base_name",
    "model_name_or_path",
    "model_seqlen",
    "module_name_preceding_first_block",
    "modules_in_block_to_quantize",
    "mse",
    "pad_token_id",
    "static_groups",
    "tokenizer",
    "true_sequential",
    "use_cuda_fp16",
    "use_exllama",
)
NUMBERS: dict[int, Number] = {4: "int4", 8: "int8"}


@dataclass(frozen=True)
class Gptq:
    """`group`: inputs that share a scale, None for all. `below`: by how much stored zero points are too small.

    `symmetric`: the config says that all zero points are the middle of the numbers, which is looked at.
    """

    bits: int
    group: int | None
    below: int
    symmetric: bool
    names: ClassVar[tuple[Names, ...]] = (Names(".weight", ".qweight", (".qzeros", ".scales"), (".g_idx",)),)

    @classmethod
    def from_config(cls, section: Section) -> Gptq:
        """From quantization_config. Raises UnsupportedModel, UnknownConfigKeys or CheckpointError, naming the key."""
        bits, group = section.choice("bits", tuple(NUMBERS)), section.take("group_size", int, 128)
        if group != -1 and group < 1:
            raise CheckpointError(f"config.json: {section.path}.group_size must be -1 or at least 1, got {group}")
        version = section.choice("checkpoint_format", ("gptq", "gptq_v2"), "gptq")
        version = section.choice("format", ("gptq", "gptq_v2"), version)
        section.choice("pack_dtype", ("int32",), "int32")
        symmetric = section.take("sym", bool, True)
        section.finish(INERT)
        return cls(bits, None if group == -1 else group, 1 if version == "gptq" else 0, symmetric)

    def skips(self, module: str) -> bool:
        """False: what is quantized is what is stored so."""
        return False

    def stored(self, module: str, parts: Parts) -> Scaled | Values:
        """As `Method` says: values where the inputs of a group are not neighbours."""
        each = 32 // self.bits
        words = parts[".qweight"].expect(("int32",))
        if len(words.shape) != 2:
            raise CheckpointError(f"the tensor {words.name!r} has shape {words.shape}, not that of a matrix")
        inputs, out = words.shape[0] * each, words.shape[1]
        group = self.group or inputs
        count = -(-inputs // group)
        parts[".qzeros"].expect(("int32",), (count, -(-out // each)))
        scales = parts[".scales"].expect(FLOAT_TYPES, (count, out))
        order = parts.get(".g_idx")
        if order is not None:
            groups = order.expect(("int32", "int64"), (inputs,)).read()
            if not np.array_equal(groups, np.arange(inputs) // group):
                return Values((out, inputs), partial(self._in_any_order, parts, groups))
        has_zeros = not self.symmetric or bool(self._zeros(parts, out).any())
        return Scaled(
            NUMBERS[self.bits],
            (out, inputs),
            (1, group),
            scales.dtype,
            has_zeros,
            None,
            lambda: ScaledData(self._numbers(parts), scales.read().T, self._zeros(parts, out) if has_zeros else None),
        )

    def _in_any_order(self, parts: Parts, groups: np.ndarray) -> np.ndarray:
        """The values, `groups[i]` being that of input i. Raises CheckpointError for a group that is not there."""
        numbers, scales = self._numbers(parts), parts[".scales"].read().astype(np.float32).T
        if groups.min() < 0 or groups.max() >= scales.shape[1]:
            raise CheckpointError(f"the tensor {parts['.g_idx'].name!r} names a group that has no scale")
        zeros = self._zeros(parts, len(numbers))
        values: np.ndarray = (numbers - zeros[:, groups]).astype(np.float32) * scales[:, groups]
        return values

    def _numbers(self, parts: Parts) -> np.ndarray:
        """int8 [out, in], less the middle of their range."""
        return self._signed(unpack(parts[".qweight"].read().T, self.bits))

    def _zeros(self, parts: Parts, out: int) -> np.ndarray:
        """int8 [out, groups], less the same. A zero point of 0 is stored by version 1 as the largest number."""
        zeros = unpack(parts[".qzeros"].read(), self.bits)[:, :out].T
        return self._signed(zeros + np.uint8(self.below) & np.uint8((1 << self.bits) - 1))

    def _signed(self, numbers: np.ndarray) -> np.ndarray:
        return (numbers - np.uint8(1 << (self.bits - 1))).view(np.int8)
