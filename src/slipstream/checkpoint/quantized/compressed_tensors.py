"""compressed-tensors checkpoints (of llm-compressor, and of `slipstream quantize`): int8, int4 and float8 weights.

Stored for a module of [out, in], by the `format` of its group:

    pack-quantized    `weight_packed` int32 [out, in * bits / 32], numbers plus half their range along the inputs;
                      `weight_scale` [out, groups]; `weight_zero_point` int32 [out * bits / 32, groups], packed along
                      the outputs; `weight_shape`; `weight_g_idx`, the group of each input, where inputs were reordered
    int-quantized     `weight` int8 [out, in], `weight_scale` [out, 1] or one, `weight_zero_point` int8 alike
    float-quantized   `weight` float8_e4m3 [out, in], `weight_scale` [out, 1], or one, or of blocks
    naive-quantized   either of the last two

A value is (number - zero) * scale. Format: the PyPI package compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import ClassVar

import numpy as np

from slipstream.checkpoint.quantized.fp8 import float8
from slipstream.checkpoint.quantized.method import FLOAT_TYPES, Names, Parts, Values, matches
from slipstream.checkpoint.quantized.section import Section
from slipstream.errors import CheckpointError, UnsupportedModel
from slipstream.quant.words import unpack
from slipstream.spec.source import Number, Rounding, Scaled, ScaledData

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
STRATEGIES = ("tensor", "channel", "group", "block")
ROUNDINGS: dict[tuple[str, int], Rounding] = {("int", 8): "int8", ("float", 8): "fp8_e4m3"}
# How scales and zero points were found, and the types that stored tensors show.
FOUND = ("observer", "observer_kwargs", "scale_dtype", "zp_dtype")
SCALE, ZEROS, ORDER = ".weight_scale", ".weight_zero_point", ".weight_g_idx"
STATIC = (".input_scale", ".input_zero_point")


@dataclass(frozen=True)
class Group:
    """One of config_groups: weights of so many `bits`, with scales for each `block` of (outputs, inputs).

    `targets`: names and patterns of modules, or of classes of them. 0 in `block` stands for all.
    """

    targets: tuple[str, ...]
    kind: str
    bits: int
    block: tuple[int, int]
    symmetric: bool
    rounding: Rounding | None

    @classmethod
    def from_config(cls, section: Section, format: str) -> Group:
        """From one object of config_groups; `format`: that of the whole checkpoint."""
        targets = section.strings("targets")
        form = section.choice("format", FORMATS, format)
        weights = section.section("weights")
        if weights is None:
            raise CheckpointError(f"config.json: {section.path} has no weights")
        kind = weights.choice("type", ("int", "float"), "int")
        bits = weights.choice("num_bits", (8, 4) if kind == "int" else (8,), 8)
        if (form, kind) in (("float-quantized", "int"), ("pack-quantized", "float"), ("int-quantized", "float")):
            raise CheckpointError(f"config.json: {section.path} has {kind} weights in the format {form}")
        weights.choice("dynamic", (False,), False)
        weights.choice("actorder", (None, "static", "weight", "group", "dynamic", False))  # weight_g_idx says it
        size, structure = weights.take("group_size", int, -1), weights.sizes("block_structure")
        strategy = weights.choice("strategy", STRATEGIES, "group" if size > 0 else "channel")
        blocks = {"tensor": (0, 0), "channel": (1, 0), "group": (1, size), "block": structure}
        block = blocks[strategy]
        if block is None or len(block) != 2 or (strategy == "group" and size < 1):
            raise CheckpointError(f"config.json: {weights.path} has the strategy {strategy} without its sizes")
        symmetric = weights.take("symmetric", bool, True)
        if kind == "float" and not symmetric:
            raise UnsupportedModel(f"config.json: {weights.path} has float numbers with zero points")
        weights.finish(FOUND)
        rounding = _rounding(section)
        section.choice("output_activations", (None,))
        section.finish()
        return cls(targets, kind, bits, (block[0], block[1]), symmetric, rounding)

    def block_of(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The block of a weight of `shape`."""
        return self.block[0] or shape[0], self.block[1] or shape[1]


def _rounding(section: Section) -> Rounding | None:
    """What inputs are rounded to: 8-bit numbers, with a scale a token (of static scales too, see fp8.py)."""
    inputs = section.section("input_activations")
    if inputs is None:
        return None
    kind, bits = inputs.choice("type", ("int", "float"), "int"), inputs.choice("num_bits", (8,), 8)
    inputs.choice("dynamic", (True, False), False)
    inputs.choice("strategy", ("token", "tensor", "group"))
    inputs.choice("symmetric", (True,), True)
    inputs.finish((*FOUND, "group_size", "actorder", "block_structure"))
    return ROUNDINGS[kind, bits]


@dataclass(frozen=True)
class CompressedTensors:
    """The groups of a checkpoint, and names and patterns of the modules that belong to none."""

    groups: tuple[Group, ...]
    ignored: tuple[str, ...]
    names: ClassVar[tuple[Names, ...]] = (
        Names(".weight", ".weight_packed", (SCALE,), (ZEROS, ORDER, ".weight_shape", *STATIC)),
        Names(".weight", SCALE, (".weight",), (ZEROS, *STATIC)),
    )

    @classmethod
    def from_config(cls, section: Section) -> CompressedTensors:
        """From quantization_config. Raises UnsupportedModel, UnknownConfigKeys or CheckpointError, naming the key."""
        format = section.choice("format", (*FORMATS, "mixed-precision"), "pack-quantized")
        section.choice("quantization_status", ("compressed",), "compressed")
        section.choice("kv_cache_scheme", (None,))
        groups = tuple(Group.from_config(one, format) for one in section.sections("config_groups"))
        ignored = section.strings("ignore")
        for name in ("sparsity_config", "transform_config"):
            if (inner := section.section(name)) is not None:
                if name == "sparsity_config":
                    inner.choice("format", ("dense",), "dense")
                    inner.finish(("global_sparsity", "ignore", "registry_requires_subclass", "sparsity_structure",
                                  "targets"))  # fmt: skip
                else:
                    inner.finish()
        section.finish(("global_compression_ratio", "version"))
        return cls(groups, ignored)

    def skips(self, module: str) -> bool:
        """As `Method` says."""
        return matches(module, self.ignored)

    def stored(self, module: str, parts: Parts) -> Scaled | Values:
        """As `Method` says."""
        group = self._group(module)
        if group.kind == "float":
            weight = parts[".weight"] if ".weight" in parts else parts[".weight_packed"]
            block = None if 0 in group.block else group.block
            # With groups along the inputs sums are not of one scale, so that nothing is gained by rounding.
            return float8(weight, parts[SCALE], block, None if block else group.rounding)
        shape, numbers = _packed(parts, group.bits) if ".weight_packed" in parts else _plain(parts)
        block = group.block_of(shape)
        counts = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
        scales = parts[SCALE].expect(FLOAT_TYPES)
        if prod(scales.shape) != prod(counts):
            raise CheckpointError(f"the tensor {scales.name!r} has shape {scales.shape}, not {counts}")
        if group.symmetric != (ZEROS not in parts):
            raise CheckpointError(f"{module} has {'' if group.symmetric else 'no '}zero points, against the config")
        zeros = None if group.symmetric else _zeros(parts, group.bits, counts)

        def read() -> ScaledData:
            return ScaledData(numbers(), scales.read().reshape(counts), None if zeros is None else zeros())

        number: Number = "int4" if group.bits == 4 else "int8"
        if ORDER in parts:
            groups = parts[ORDER].expect(("int32", "int64"), (shape[1],)).read()
            if groups.min() >= 0 and not np.array_equal(groups, np.arange(shape[1]) // block[1]):
                return Values(shape, partial(_in_any_order, read, groups))
        return Scaled(number, shape, block, scales.dtype, zeros is not None, group.rounding, read)

    def _group(self, module: str) -> Group:
        """The group of a module: one that names it, else one that names a class. Classes are not known here."""
        for group in self.groups:
            if matches(module, group.targets):
                return group
        for group in self.groups:
            if any(not target.startswith("re:") and "." not in target for target in group.targets):
                return group
        raise CheckpointError(f"{module} is quantized, and no group of quantization_config names it")


def _packed(parts: Parts, bits: int) -> tuple[tuple[int, int], Callable[[], np.ndarray]]:
    """The shape and the numbers of a packed weight."""
    words = parts[".weight_packed"].expect(("int32",))
    if len(words.shape) != 2:
        raise CheckpointError(f"the tensor {words.name!r} has shape {words.shape}, not that of a matrix")
    out, inputs = words.shape[0], words.shape[1] * 32 // bits
    if ".weight_shape" in parts:
        stated = [int(size) for size in parts[".weight_shape"].expect(("int64", "int32"), (2,)).read()]
        if stated[0] != out or not inputs - 32 // bits < stated[1] <= inputs:
            raise CheckpointError(f"the tensor {words.name!r} has shape {words.shape}, which is not that of {stated}")
        inputs = stated[1]
    return (out, inputs), lambda: _signed(unpack(words.read(), bits)[:, :inputs], bits)


def _plain(parts: Parts) -> tuple[tuple[int, int], Callable[[], np.ndarray]]:
    weight = parts[".weight"].expect(("int8",))
    if len(weight.shape) != 2:
        raise CheckpointError(f"the tensor {weight.name!r} has shape {weight.shape}, not that of a matrix")
    return (weight.shape[0], weight.shape[1]), weight.read


def _zeros(parts: Parts, bits: int, counts: tuple[int, int]) -> Callable[[], np.ndarray]:
    """The zero points: packed along the outputs where the numbers are packed, else as they are."""
    stored = parts[ZEROS]
    if ".weight_packed" not in parts:
        stored.expect(("int8",))
        if prod(stored.shape) != prod(counts):
            raise CheckpointError(f"the tensor {stored.name!r} has shape {stored.shape}, not {counts}")
        return lambda: stored.read().reshape(counts)
    stored.expect(("int32",), (-(-counts[0] * bits // 32), counts[1]))
    return lambda: _signed(unpack(stored.read().T, bits)[:, : counts[0]].T, bits)


def _signed(numbers: np.ndarray, bits: int) -> np.ndarray:
    return (numbers - np.uint8(1 << (bits - 1))).view(np.int8)


def _in_any_order(read: Callable[[], ScaledData], groups: np.ndarray) -> np.ndarray:
    """Values where `groups[i]` is the group of input i. Raises CheckpointError for a group that is not there."""
    numbers, scales, zeros = read()
    if groups.max() >= scales.shape[1]:
        raise CheckpointError(f"a weight_g_idx names the group {groups.max()} of {scales.shape[1]}")
    shifted = numbers.astype(np.float32) - (0 if zeros is None else zeros[:, groups].astype(np.float32))
    values: np.ndarray = shifted * scales[:, groups].astype(np.float32)
    return values
