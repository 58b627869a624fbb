"""Quantized checkpoints: every number as the format says, and the same greedy tokens as the same values unquantized."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from slipstream.checkpoint import open_checkpoint
from slipstream.errors import CheckpointError, SlipstreamError, UnknownConfigKeys, UnsupportedModel
from slipstream.kernels.blocks import as_blocks
from slipstream.kernels.native import library
from slipstream.kernels.native.pack import pack, unpack
from slipstream.kernels.packed import Packed
from slipstream.spec.source import Scaled, Stored
from tests.checkpoint.quantized.files import CONFIG, FORMATS, Tensors, write
from tests.models.harness import Model, difference, prompt_of

PROMPT, NEW = 13, 24
ROUNDS_INPUTS = {"int8-w8a8": 0.1, "fp8-channel": 0.25}
ON_XLA = (
    "gptq-int4-g64-asymmetric",
    "awq-g128",
    "packed-int4-g128",
    "packed-int8-channel",
    "fp8-block",
    *ROUNDS_INPUTS,
)
KINDS = {
    "gptq-int4-g128": "int4_128",
    "gptq-int4-g64-asymmetric": "q5_0",
    "gptq-int8-channel": "int8_128",
    "awq-g128": "q5_0",
    "packed-int4-g32-asymmetric": "int8_32",
    "packed-int8-g64": "int8_64",
    "packed-int8-g64-asymmetric": "int8z_64",
    "fp8-block": "f8_128",
}
"""What the native kernels hold of each."""


@dataclass(frozen=True)
class Plain:
    """Tensors as a source."""

    tensors: Tensors

    def names(self) -> Collection[str]:
        return self.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def read(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def blocks(self, name: str) -> Stored | None:
        return None


@pytest.mark.parametrize("name", FORMATS)
def test_values_are_bit_exact(name: str, tmp_path: Path) -> None:
    values = write(tmp_path, FORMATS[name])
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.source.names()) == set(values)
    for tensor, expected in values.items():
        assert checkpoint.source.shape(tensor) == expected.shape
        np.testing.assert_array_equal(checkpoint.source.read(tensor), expected, err_msg=tensor)
    stored = checkpoint.source.blocks("model.layers.0.mlp.down_proj.weight")
    assert isinstance(stored, Scaled) == (name != "gptq-int4-desc-act")
    assert "quantization_config" not in checkpoint.config


@cache
def _model() -> Model:
    return Model.random(CONFIG)


def plain(values: Tensors) -> Model:
    """The model of plain float32 weights; compiled once for all."""
    model = Model.read(CONFIG, Plain(values))
    vars(model)["compiled"] = partial(_model().compiled.func, model.weights)
    return model


@pytest.mark.parametrize("name", ON_XLA)
def test_greedy_tokens_equal_those_of_the_values(name: str, tmp_path: Path) -> None:
    """By XLA: products in float32, or with inputs in 8 bits where the checkpoint asks for that."""
    theirs, prompt = plain(write(tmp_path, FORMATS[name])), prompt_of(CONFIG["vocab_size"], PROMPT)
    tokens = theirs.session([PROMPT + NEW], PROMPT).greedy(prompt, NEW)
    given = [*prompt, *tokens[:-1]]
    logits = Model.open(tmp_path).session([len(given)], len(given)).step(given)[0]
    if name in ROUNDS_INPUTS:
        expected = theirs.session([PROMPT + NEW], len(given)).step(given)[0]
        assert 1e-4 < difference(logits, expected) < ROUNDS_INPUTS[name]
    else:
        assert logits[PROMPT - 1 :].argmax(-1).tolist() == tokens


@pytest.mark.skipif(library.reason() is not None, reason="the native kernels were not built here")
@pytest.mark.parametrize("name", KINDS)
def test_native_kernels_give_the_same(name: str, tmp_path: Path) -> None:
    """Numbers and scales move into the native kernels' kinds without loss; inputs are rounded to 16 bits."""
    values, prompt = write(tmp_path, FORMATS[name]), prompt_of(CONFIG["vocab_size"], PROMPT)
    native = Model.open(tmp_path, "cpu")
    leaves = jax.tree.leaves(native.weights.blocks, is_leaf=lambda leaf: isinstance(leaf, Packed))
    assert {leaf.packing.kinds for leaf in leaves if isinstance(leaf, Packed)} == {(KINDS[name],) * 2}
    expected = plain(values).session([PROMPT], PROMPT).step(prompt)[0]
    assert difference(native.session([PROMPT], PROMPT).step(prompt)[0], expected) < 3e-4


@pytest.mark.parametrize("name", FORMATS)
def test_native_blocks_hold_the_same_values(name: str, tmp_path: Path) -> None:
    values, source = write(tmp_path, FORMATS[name]), open_checkpoint(tmp_path).source
    for tensor in ("model.layers.0.self_attn.k_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        blocks = as_blocks(source.blocks(tensor))
        if blocks is not None:
            (out, inputs), kind = blocks.shape, blocks.kind.lower()
            packed = pack(kind, blocks.read().reshape(out, -1), inputs)
            np.testing.assert_array_equal(unpack(kind, packed, out, inputs), values[tensor])


def edited(folder: Path, name: str, **changes: Any) -> Path:
    """A checkpoint with other entries in its quantization_config; dots lead into it, None removes."""
    write(folder, FORMATS[name])
    config = json.loads((folder / "config.json").read_text())
    for path, value in changes.items():
        at = config["quantization_config"]
        *before, last = path.split("__")
        for key in before:
            at = at[key]
        at[last] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


GROUP = "config_groups__group_0__"


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("awq-g128", {"quant_method": "hqq"}, UnsupportedModel, "hqq.*awq, compressed-tensors, fp8, gptq, mxfp4"),
        ("awq-g128", {"version": "gemv"}, UnsupportedModel, "version.*gemv.*gemm"),
        ("awq-g128", {"bits": 3}, UnsupportedModel, "bits to 3.*reads: 4"),
        ("awq-g128", {"flux": 1}, UnknownConfigKeys, "quantization_config.flux"),
        ("awq-g128", {"group_size": 0}, CheckpointError, "group_size"),
        ("awq-g128", {"modules_to_not_convert": ["mlp"]}, CheckpointError, "mlp.*not quantized"),
        ("gptq-int4-g128", {"bits": 2}, UnsupportedModel, "bits to 2.*4, 8"),
        ("gptq-int4-g128", {"checkpoint_format": "marlin"}, UnsupportedModel, "marlin"),
        ("gptq-int4-g128", {"dynamic": {"-:.*": {}}}, UnknownConfigKeys, "quantization_config.dynamic"),
        ("gptq-int4-g128", {"bits": 8}, CheckpointError, "shape"),
        ("fp8-block", {"fmt": "e5m2"}, UnsupportedModel, "e5m2"),
        ("fp8-block", {"weight_block_size": [64, 128]}, CheckpointError, "weight_scale_inv"),
        ("fp8-block", {"ignored_layers": ["model.layers.1.mlp.up_proj"]}, CheckpointError, "layers.1.mlp.up_proj"),
        ("packed-int4-g128", {"format": "marlin-24"}, UnsupportedModel, "marlin-24.*pack-quantized"),
        ("packed-int4-g128", {GROUP + "weights__num_bits": 3}, UnsupportedModel, "num_bits to 3"),
        ("packed-int4-g128", {GROUP + "weights__flux": 1}, UnknownConfigKeys, "group_0.weights.flux"),
        ("packed-int4-g128", {GROUP + "weights__symmetric": False}, CheckpointError, "no zero points"),
        ("packed-int4-g128", {GROUP + "weights__group_size": 64}, CheckpointError, "weight_scale"),
        ("packed-int4-g128", {GROUP + "weights": None}, CheckpointError, "has no weights"),
        ("packed-int4-g128", {GROUP + "targets": ["re:.*attn.*"]}, CheckpointError, "no group"),
        ("packed-int4-g128", {"ignore": ["re:.*layers.1.*"]}, CheckpointError, "layers.1"),
        ("packed-int4-g128", {"ignore": ["re:("]}, CheckpointError, "pattern"),
        ("packed-int4-g128", {"kv_cache_scheme": {"num_bits": 8}}, UnsupportedModel, "kv_cache_scheme"),
        ("int8-w8a8", {"quant_method": "fp8"}, SlipstreamError, "quantization_config"),
        ("awq-g128", {"modules_to_not_convert": [3]}, CheckpointError, "list of strings"),
    ],
)
def test_what_cannot_be_read_is_refused(
    name: str, changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    folder = edited(tmp_path, name, **changes)
    with pytest.raises(error, match=message):
        Model.open(folder)


def test_a_weight_without_its_scale_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, FORMATS["int8-w8a8"])
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight_scale"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up_proj\.weight.*no scale"):
        open_checkpoint(tmp_path)


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    write(tmp_path, FORMATS["awq-g128"])
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.qzeros"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.0\.mlp\.up_proj\.qzeros"):
        open_checkpoint(tmp_path)


def test_layers_that_are_not_quantized_stay_as_they_are(tmp_path: Path) -> None:
    """A stack with one plain layer is read as plain numbers, on XLA; the native kernels take each layer as it is."""
    values = write(tmp_path, FORMATS["packed-int4-g128"])
    tensors, name = load_file(tmp_path / "model.safetensors"), "model.layers.1.mlp.down_proj.weight"
    for end in ("_packed", "_scale", "_shape"):
        del tensors[name + end]
    tensors[name] = np.ascontiguousarray(values[name])
    save_file(tensors, tmp_path / "model.safetensors")
    prompt = prompt_of(CONFIG["vocab_size"], PROMPT)
    expected = plain(values).session([PROMPT], PROMPT).step(prompt)[0]
    mixed = Model.open(tmp_path)
    assert mixed.weights.blocks.mlp.down.shape == (2, 384, 256)
    assert difference(mixed.session([PROMPT], PROMPT).step(prompt)[0], expected) < 1e-5
    if library.reason() is None:
        native = Model.open(tmp_path, "cpu")
        assert native.weights.blocks.mlp.down.packing.kinds == ("int4_128", "f32")
        assert difference(native.session([PROMPT], PROMPT).step(prompt)[0], expected) < 3e-4
