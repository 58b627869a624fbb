"""Writing a checkpoint with quantized weights, in compressed-tensors' format, which vLLM and transformers read too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from slipstream.checkpoint.progress import Progress, silent
from slipstream.checkpoint.quantized.rounded import chosen_matrices, rounded
from slipstream.checkpoint.stream import Described, Piece, write_pieces
from slipstream.errors import ConfigError
from slipstream.quant.rounding import Scheme
from slipstream.quant.scaled import NUMBERS
from slipstream.quant.words import pack
from slipstream.spec.source import Checkpoint, Source

WIDTHS: Mapping[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""config.json's dtype (in older files torch_dtype), which is that of scales and of what is not quantized."""

BESIDE = (
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "generation_config.json", "merges.txt",
    "special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json",
)  # fmt: skip
"""Files of a model's folder that are copied as they are."""


@dataclass(frozen=True)
class Written:
    """`bytes`: of all tensors. `quantized`: how many matrices are, of how many `weights`. `bits`: of one of these, with
    its share of the scales.
    """

    bytes: int
    quantized: int
    weights: int
    bits: float


def write_quantized(
    checkpoint: Checkpoint,
    plan: Any,
    scheme: Scheme,
    rounding: bool,
    folder: Path,
    progress: Progress = silent,
) -> Written:
    """Write `checkpoint` to `folder` with the matrices of its layers rounded by `scheme`, a weight at a time.

    `plan`: of its model. `rounding`: whether config.json asks to round inputs to 8 bits too. Everything else is written
    in config.json's dtype, or bfloat16 where it has none. Tokenizer files are copied.

    Raises ConfigError where the scheme does not fit the model or the folder is not empty, CheckpointError for weights
    that are not finite.
    """
    if rounding and scheme.number == "int4":
        raise ConfigError("inputs in 8 bits need one scale for each output: use --scheme int8 or fp8")
    source, config = checkpoint.source, dict(checkpoint.config)
    stated = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    if stated not in WIDTHS:
        raise ConfigError(f"config.json has dtype {stated!r}; weights are written as {', '.join(WIDTHS)}")
    chosen = chosen_matrices(source, plan, scheme)
    pieces = list(_pieces(source, chosen, scheme, rounding, WIDTHS[stated]))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not empty: choose another place for the quantized model")
    folder.mkdir(parents=True, exist_ok=True)
    total = write_pieces(pieces, folder, stage="write quantized weights", progress=progress)
    ignored = sorted({"lm_head", *_modules_left(source, chosen)})
    key = "dtype" if "dtype" in config else "torch_dtype"
    settings = {**config, key: stated, "quantization_config": quantization_config(scheme, rounding, ignored)}
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if checkpoint.path.is_dir():
        for name in BESIDE:
            if (checkpoint.path / name).is_file():
                shutil.copyfile(checkpoint.path / name, folder / name)
    return _summary(pieces, source, chosen, total)


def quantization_config(scheme: Scheme, rounding: bool, ignored: Sequence[str]) -> dict[str, Any]:
    """config.json's entry for compressed-tensors."""
    kind, bits = ("float", 8) if scheme.number == "fp8_e4m3" else ("int", int(scheme.number.removeprefix("int")))
    form = "float-quantized" if kind == "float" else "int-quantized" if rounding else "pack-quantized"
    numbers = {"num_bits": bits, "type": kind, "symmetric": True}
    shared = {"strategy": "group", "group_size": scheme.group} if scheme.group else {"strategy": "channel"}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**numbers, **shared, "dynamic": False},
                "input_activations": {**numbers, "strategy": "token", "dynamic": True} if rounding else None,
                "output_activations": None,
            }
        },
        "ignore": list(ignored),
        "kv_cache_scheme": None,
    }


def _modules_left(source: Source, chosen: frozenset[str]) -> Iterator[str]:
    """Modules whose matrix stays as it is."""
    for name in source.names():
        if name.endswith(".weight") and name not in chosen and len(source.shape(name)) > 1:
            yield name.removesuffix(".weight")


def _pieces(source: Source, chosen: frozenset[str], scheme: Scheme, rounding: bool, dtype: np.dtype) -> Iterator[Piece]:
    for name in sorted(source.names()):
        shape = source.shape(name)
        if name not in chosen:
            yield Piece((Described(name, dtype, shape),), partial(_plain, source, name, dtype))
            continue
        module, (out, inputs) = name.removesuffix(".weight"), shape
        scales = Described(f"{module}.weight_scale", dtype, (out, inputs // (scheme.group or inputs)))
        if scheme.number == "fp8_e4m3" or rounding:
            tensors: tuple[Described, ...] = (Described(name, NUMBERS[scheme.number], shape), scales)
            yield Piece(tensors, partial(_numbers, source, name, scheme, dtype))
            continue
        bits = int(scheme.number.removeprefix("int"))
        words = Described(f"{module}.weight_packed", np.dtype("<i4"), (out, -(-inputs * bits // 32)))
        tensors = (words, scales, Described(f"{module}.weight_shape", np.dtype("<i8"), (2,)))
        yield Piece(tensors, partial(_packed, source, name, scheme, bits, dtype))


def _plain(source: Source, name: str, dtype: np.dtype) -> list[np.ndarray]:
    return [source.read(name).astype(dtype, copy=False)]


def _numbers(source: Source, name: str, scheme: Scheme, dtype: np.dtype) -> list[np.ndarray]:
    data = rounded(source, name, scheme, dtype)
    return [data.numbers, data.scales]


def _packed(source: Source, name: str, scheme: Scheme, bits: int, dtype: np.dtype) -> list[np.ndarray]:
    numbers, scales = _numbers(source, name, scheme, dtype)
    middle, each = 1 << (bits - 1), 32 // bits
    unsigned = (numbers.view(np.uint8) + np.uint8(middle)) & np.uint8(2 * middle - 1)
    unsigned = np.pad(unsigned, ((0, 0), (0, -unsigned.shape[1] % each)))
    return [pack(unsigned, bits), scales, np.array(numbers.shape, "<i8")]


def _summary(pieces: Sequence[Piece], source: Source, chosen: frozenset[str], total: int) -> Written:
    weights = sum(int(np.prod(source.shape(name), dtype=np.int64)) for name in chosen)
    stored = sum(piece.size for piece in pieces if len(piece.tensors) > 1)
    return Written(total, len(chosen), weights, 8 * stored / weights)
