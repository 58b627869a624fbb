"""Weights that are a part of a stored tensor: rows that follow one another, rows of each head, alternating ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from slipstream.checkpoint import RandomSource, check, load, open_checkpoint
from slipstream.checkpoint.loading import blocks_of, read
from slipstream.checkpoint.safetensors_source import SafetensorsSource
from slipstream.errors import CheckpointError
from slipstream.kernels.packed import packing_of
from slipstream.spec.param import Axis, Param, Part, param, stacked
from slipstream.spec.source import Blocks
from tests.checkpoint.gguf_files import LLAMA, llama_tensors, write
from tests.checkpoint.test_loading import Held, keep

D, F = Axis("embed", "d", 8), Axis("mlp", "f", 6)
N, K, H = Axis("heads", "n", 4), Axis("kv_heads", "k", 2), Axis("head", "h", 3)


def fused(at: str = "") -> tuple[Param, Param, Param]:
    """Queries, keys and values in one tensor, as Phi 3 has them."""
    name, heads = at + "qkv.weight", N.size + 2 * K.size
    return (
        param(D | N | H, name, "(n h) d -> d n h", part=Part("n", 0, heads), contract=("embed",)),
        param(D | K | H, name, "(k h) d -> d k h", part=Part("k", 4, heads), contract=("embed",)),
        param(D | K | H, name, "(k h) d -> d k h", part=Part("k", 6, heads), contract=("embed",)),
    )


def held(leaf: Param, seed: int = 0) -> Held:
    return Held({name: RandomSource(leaf, seed).read(name) for name in leaf.names})


def test_rows_that_follow_one_another() -> None:
    q, k, v = fused()
    source = held(q)
    stored = source.tensors["qkv.weight"]
    assert stored.shape == q.stored_shape == k.stored_shape == (8 * 3, 8)
    for leaf, heads in ((q, range(4)), (k, range(4, 6)), (v, range(6, 8))):
        found = read(leaf, source)
        assert found.shape == leaf.shape
        for i, head in enumerate(heads):
            np.testing.assert_array_equal(found[:, i], stored[head * 3 : head * 3 + 3].T)


def test_alternating_columns_of_the_last_axis() -> None:
    """As gpt-oss keeps gate and up, with experts before them."""
    E = Axis("experts", "e", 2)
    gate, up = (param(E | D | F, "gate_up", part=Part("f", i, 12, step=2)) for i in range(2))
    source = held(gate)
    stored = source.tensors["gate_up"]
    assert stored.shape == (2, 8, 12)
    np.testing.assert_array_equal(read(gate, source), stored[..., ::2])
    np.testing.assert_array_equal(read(up, source), stored[..., 1::2])


def test_some_rows_of_each_head() -> None:
    """As DeepSeek keeps keys and values in kv_b_proj."""
    keys, values = (param(N | H | D, "kv", "(n h) d -> n h d", part=Part("h", i, 6)) for i in (0, 3))
    source = held(keys)
    by_head = source.tensors["kv"].reshape(4, 6, 8)
    np.testing.assert_array_equal(read(keys, source), by_head[:, :3])
    np.testing.assert_array_equal(read(values, source), by_head[:, 3:])


def test_a_bias_and_its_offset() -> None:
    bias = param(K | H, "qkv.bias", "(k h) -> k h", part=Part("k", 4, 8), offset=1.0)
    source = held(bias)
    found = read(bias, source)
    np.testing.assert_array_equal(found.reshape(-1), source.tensors["qkv.bias"][12:18] + np.float32(1))


def test_a_part_is_copied_out_of_what_others_hold() -> None:
    leaf = param(F, "norms", part=Part("f", 3, 20))
    source = held(leaf)
    found = read(leaf, source)
    assert not np.shares_memory(found, source.tensors["norms"])
    assert found.ctypes.data % 64 == 0


def test_layers_are_stacked() -> None:
    plan = stacked(3, lambda at: fused(at)[1])
    source = held(plan)
    found = load(plan, source, keep)
    for layer in range(3):
        stored = source.tensors[f"model.layers.{layer}.qkv.weight"]
        np.testing.assert_array_equal(found[layer, :, 1], stored[15:18].T)


def test_the_whole_tensor_must_have_its_shape() -> None:
    q, _, _ = fused()
    source = held(q)
    source.tensors["qkv.weight"] = np.zeros((12, 8), np.float32)
    with pytest.raises(CheckpointError, match=r"qkv.weight: \(12, 8\) in the checkpoint, \(24, 8\) by the config"):
        check(q, source)


def test_a_part_past_the_end_is_a_mistake_of_the_plan() -> None:
    with pytest.raises(ValueError, match="pass the end"):
        read(param(F, "w", part=Part("f", 4, 9)), Held({"w": np.zeros(9, np.float32)}))


def test_only_the_part_is_read(tmp_path: Path) -> None:
    """A file of 64 GiB, all hole but for its header: whoever reads the whole tensor does not come back."""
    rows = 1 << 31
    leaf = param(F | D, "w", part=Part("f", rows - 6, rows))
    header = json.dumps({"w": {"dtype": "F32", "shape": [rows, 8], "data_offsets": [0, rows * 32]}}).encode()
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + rows * 32)
    source = SafetensorsSource([path])
    assert load(leaf, source, keep).tolist() == np.zeros((6, 8)).tolist()
    (blocks,) = blocks_of(leaf, source)
    assert blocks is not None
    assert (blocks.kind, blocks.shape) == ("F32", (6, 8))
    assert np.shares_memory(blocks.read(), source.read("w"))


def test_rows_of_quantized_blocks(tmp_path: Path) -> None:
    """What the native kernels are given are the stored bytes of just these rows."""
    source = open_checkpoint(write(tmp_path / "x.gguf", "llama", LLAMA, llama_tensors("Q8_0"))).source
    name = "model.layers.0.mlp.up_proj.weight"
    d, f = Axis("embed", "d", 256), Axis("mlp", "f", 128)
    leaf = param(d | f, name, "f d -> d f", part=Part("f", 256, 512), contract=("embed",))
    (blocks,) = blocks_of(leaf, source)
    whole = source.blocks(name)
    assert isinstance(blocks, Blocks)
    assert whole is not None
    assert (blocks.kind, blocks.shape) == ("Q8_0", (128, 256))
    np.testing.assert_array_equal(blocks.read(), whole.read()[256:384])
    assert packing_of(leaf, [blocks]) is not None
    np.testing.assert_array_equal(read(leaf, source), source.read(name)[256:384].T)


def test_a_part_of_a_row_of_blocks_must_be_dequantized(tmp_path: Path) -> None:
    source = open_checkpoint(write(tmp_path / "x.gguf", "llama", LLAMA, llama_tensors("Q8_0"))).source
    d, f = Axis("embed", "d", 100), Axis("mlp", "f", 512)
    leaf = param(d | f, "model.layers.0.mlp.up_proj.weight", "f d -> d f", part=Part("d", 5, 256))
    assert blocks_of(leaf, source) == [None]
    np.testing.assert_array_equal(read(leaf, source), source.read(leaf.names[0])[:, 5:105].T)


def test_a_part_of_rows_of_floats(tmp_path: Path) -> None:
    """As the matrices that Flux's single blocks multiply attention's result and the feed-forward's with."""
    whole = np.random.default_rng(0).standard_normal((8, 18)).astype(np.float16)
    save_file({"w": whole}, tmp_path / "model.safetensors")
    source = SafetensorsSource([tmp_path / "model.safetensors"])
    leaf = param(N | H | D, "w", "d (n h) -> n h d", part=Part("n", 1, 6), contract=("heads", "head"))
    (blocks,) = blocks_of(leaf, source)
    assert isinstance(blocks, Blocks) and (blocks.kind, blocks.shape) == ("F16", (8, 12))
    np.testing.assert_array_equal(blocks.read().view(np.float16), whole[:, 3:15])
    assert packing_of(leaf, [blocks]) is not None
    np.testing.assert_array_equal(read(leaf, source), whole[:, 3:15].T.reshape(4, 3, 8))
