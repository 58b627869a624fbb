"""Small quantized checkpoints in every format that is read, written bit by bit from the formats' descriptions.

Nothing here comes from the package: a weight's numbers, scales and zero points are drawn, packed by loops as each
format says, and multiplied out in float32. A format packs a weight of [out, in] and says what its values are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from slipstream.checkpoint import RandomSource
from slipstream.models.registry import family

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}

Tensors = dict[str, np.ndarray]
Packed = tuple[Tensors, np.ndarray]


@dataclass(frozen=True)
class Format:
    """`config`: quantization_config. `pack(rng, out, in)`: tensors by the ends of their names, and values [out, in]."""

    config: Mapping[str, Any]
    pack: Callable[[np.random.Generator, int, int], Packed]


def words(numbers: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """Numbers without sign [..., n] in int32 words along the last axis, one after the other from the lowest bits."""
    each = 32 // bits
    packed = np.zeros((*numbers.shape[:-1], numbers.shape[-1] // each), np.uint32)
    for word in range(packed.shape[-1]):
        for place in range(each):
            number = numbers[..., word * each + (order[place] if order else place)].astype(np.uint32)
            packed[..., word] |= number << np.uint32(place * bits)
    return packed.view(np.int32)


def scales_of(rng: np.random.Generator, shape: tuple[int, ...], inputs: int, spread: float, dtype: Any) -> np.ndarray:
    """Scales that give weights of variance 1 / inputs from numbers of a standard deviation `spread`."""
    return (rng.uniform(0.5, 1.5, shape) / (spread * np.sqrt(inputs))).astype(dtype)


def repeated(scales: np.ndarray, out: int, inputs: int) -> np.ndarray:
    """Scales of equal blocks for each number, float32."""
    rows = np.arange(out) * scales.shape[0] // out
    columns = np.arange(inputs) * scales.shape[1] // inputs
    return scales[rows][:, columns].astype(np.float32)


def gptq(bits: int, group: int, *, version: str = "gptq", symmetric: bool = True, shuffled: bool = False) -> Format:
    def pack(rng: np.random.Generator, out: int, inputs: int) -> Packed:
        size, groups = (group if group > 0 else inputs), max(1, inputs // group)
        top, half = 1 << bits, 1 << (bits - 1)
        numbers = rng.integers(0, top, (out, inputs))
        zeros = np.full((groups, out), half) if symmetric else rng.integers(1, top, (groups, out))
        scales = scales_of(rng, (groups, out), inputs, half / 1.7, np.float16)
        order = np.arange(inputs) // size
        if shuffled:
            order = rng.permutation(order)
        tensors = {
            "qweight": words(numbers, bits).T.copy(),
            "qzeros": words(zeros - (version == "gptq"), bits),
            "scales": scales,
            "g_idx": order.astype(np.int32),
        }
        values = (numbers - zeros[order].T).astype(np.float32) * scales[order].T.astype(np.float32)
        return tensors, values

    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": shuffled, "sym": symmetric,
              "damp_percent": 0.1, "true_sequential": True, "checkpoint_format": version}  # fmt: skip
    return Format(config, pack)


def awq(group: int) -> Format:
    # From the lowest four bits of a word up: the outputs 0, 2, 4, 6, 1, 3, 5, 7 of its eight.
    order = (0, 2, 4, 6, 1, 3, 5, 7)

    def pack(rng: np.random.Generator, out: int, inputs: int) -> Packed:
        groups = inputs // group
        numbers, zeros = rng.integers(0, 16, (inputs, out)), rng.integers(0, 16, (groups, out))
        scales = scales_of(rng, (groups, out), inputs, 6.5, np.float16)
        tensors = {"qweight": words(numbers, 4, order), "qzeros": words(zeros, 4, order), "scales": scales}
        apart = (numbers - np.repeat(zeros, group, 0)).astype(np.float32)
        return tensors, (apart * np.repeat(scales, group, 0).astype(np.float32)).T

    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True,
              "modules_to_not_convert": ["lm_head"]}  # fmt: skip
    return Format(config, pack)


def packed_ints(bits: int, group: int | None, *, symmetric: bool = True, dtype: Any = ml_dtypes.bfloat16) -> Format:
    """compressed-tensors' pack-quantized."""

    def pack(rng: np.random.Generator, out: int, inputs: int) -> Packed:
        half, groups = 1 << (bits - 1), inputs // (group or inputs)
        numbers = rng.integers(-half, half, (out, inputs))
        scales = scales_of(rng, (out, groups), inputs, half / 1.7, dtype)
        zeros = np.zeros((out, groups), int) if symmetric else rng.integers(-half, half, (out, groups))
        tensors = {
            "weight_packed": words(numbers + half, bits),
            "weight_scale": scales,
            "weight_shape": np.array([out, inputs], np.int64),
        }
        if not symmetric:
            tensors["weight_zero_point"] = words((zeros + half).T, bits).T.copy()
        apart = (numbers - np.repeat(zeros, inputs // groups, 1)).astype(np.float32)
        return tensors, apart * repeated(scales, out, inputs)

    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "dynamic": False, "group_size": group,
               "strategy": "group" if group else "channel"}  # fmt: skip
    return Format(compressed("pack-quantized", weights, None), pack)


def plain_ints() -> Format:
    """compressed-tensors' int-quantized: int8 weights and activations."""

    def pack(rng: np.random.Generator, out: int, inputs: int) -> Packed:
        numbers, scales = rng.integers(-127, 128, (out, inputs)), scales_of(rng, (out, 1), inputs, 73, np.float32)
        tensors = {"weight": numbers.astype(np.int8), "weight_scale": scales}
        return tensors, numbers.astype(np.float32) * scales

    weights = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False, "strategy": "channel"}
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
    return Format(compressed("int-quantized", weights, inputs), pack)


def float8s(rng: np.random.Generator, out: int, inputs: int) -> np.ndarray:
    return (rng.standard_normal((out, inputs)) * 100).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)


def floats(strategy: str) -> Format:
    """compressed-tensors' float-quantized."""

    def pack(rng: np.random.Generator, out: int, inputs: int) -> Packed:
        numbers = float8s(rng, out, inputs)
        shape = {"channel": (out, 1), "tensor": (1, 1), "block": (out // 128, inputs // 128)}[strategy]
        scales = scales_of(rng, shape, inputs, 100, ml_dtypes.bfloat16)
        stored = scales.reshape(1) if strategy == "tensor" else scales
        return {"weight": numbers, "weight_scale": stored}, numbers.astype(np.float32) * repeated(scales, out, inputs)

    weights = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "strategy": strategy}
    if strategy == "block":
        weights["block_structure"] = [128, 128]
    inputs = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": True, "strategy": "token"}
    return Format(compressed("float-quantized", weights, inputs), pack)


def compressed(form: str, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": dict(weights), "input_activations": inputs,
                        "output_activations": None}
        },
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "version": "0.12.0",
    }  # fmt: skip


def fp8(block: tuple[int, int] | None = (128, 128)) -> Format:
    """FP8 as DeepSeek-V3 stores it, or with one scale for a weight."""

    def pack(rng: np.random.Generator, out: int, inputs: int) -> Packed:
        numbers = float8s(rng, out, inputs)
        shape = (1, 1) if block is None else (-(-out // block[0]), -(-inputs // block[1]))
        scales = scales_of(rng, shape, inputs, 100, np.float32)
        rows, columns = (np.arange(size) // (block[i] if block else size) for i, size in enumerate((out, inputs)))
        values = numbers.astype(np.float32) * scales[rows][:, columns]
        if block is None:
            return {"weight": numbers, "weight_scale": scales.reshape(()), "input_scale": np.float32([0.1])}, values
        return {"weight": numbers, "weight_scale_inv": scales}, values

    config = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic" if block else "static",
              "weight_block_size": list(block) if block else None, "modules_to_not_convert": ["lm_head"]}  # fmt: skip
    return Format(config, pack)


FORMATS: dict[str, Format] = {
    "gptq-int4-g128": gptq(4, 128),
    "gptq-int4-g64-asymmetric": gptq(4, 64, symmetric=False),
    "gptq-int8-channel": gptq(8, -1),
    "gptq-v2-int4-g32": gptq(4, 32, version="gptq_v2", symmetric=False),
    "gptq-int4-desc-act": gptq(4, 128, symmetric=False, shuffled=True),
    "awq-g128": awq(128),
    "awq-g64": awq(64),
    "packed-int4-g128": packed_ints(4, 128),
    "packed-int4-g32-asymmetric": packed_ints(4, 32, symmetric=False),
    "packed-int4-channel-asymmetric-f16": packed_ints(4, None, symmetric=False, dtype=np.float16),
    "packed-int8-channel": packed_ints(8, None),
    "packed-int8-g64-asymmetric": packed_ints(8, 64, symmetric=False),
    "packed-int8-g64": packed_ints(8, 64, dtype=np.float32),
    "int8-w8a8": plain_ints(),
    "fp8-channel": floats("channel"),
    "fp8-tensor": floats("tensor"),
    "fp8-compressed-block": floats("block"),
    "fp8-block": fp8(),
    "fp8-static": fp8(None),
}


def write(folder: Path, form: Format, config: Mapping[str, Any] = CONFIG, seed: int = 0) -> Tensors:
    """A random model whose layers' matrices are quantized; returns all its tensors as plain ones."""
    row = family(config)
    source = RandomSource(row.plan(row.from_hf(config)), seed, jitter=0.2)
    rng = np.random.default_rng(seed)
    stored: Tensors = {}
    values: Tensors = {}
    for name in sorted(source.names()):
        shape = source.shape(name)
        if len(shape) != 2 or "layers" not in name:
            stored[name] = values[name] = source.read(name)
            continue
        parts, values[name] = form.pack(rng, *shape)
        stored |= {f"{name.removesuffix('weight')}{end}": np.ascontiguousarray(part) for end, part in parts.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(stored, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": form.config}))
    return values
