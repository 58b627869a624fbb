from __future__ import annotations

from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest

from slipstream.checkpoint import open_checkpoint
from slipstream.checkpoint.gguf_file import BLOCK_TYPES, GgufFile
from slipstream.checkpoint.gguf_source import GgufSource, dequantize
from slipstream.errors import CheckpointError
from tests.checkpoint.block_reference import DEQUANTIZE
from tests.checkpoint.gguf_files import GEMMA3, LLAMA, gemma_tensors, llama_tensors, stored, write, write_llama

KINDS = {kind.name: kind for kind in BLOCK_TYPES.values()}


def source_of(path: Path) -> GgufSource:
    source = open_checkpoint(path).source
    assert isinstance(source, GgufSource)
    return source


def rotated(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to the rows of Q and K."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


@pytest.mark.parametrize("name", sorted(DEQUANTIZE))
def test_blocks_dequantize_as_the_layouts_say(name: str) -> None:
    kind = KINDS[name]
    data = stored(name, (3, 512), seed=7)
    ours = dequantize(kind, data)
    blocks = data.reshape(-1, kind.size)
    expected = np.array([DEQUANTIZE[name](block.tobytes()) for block in blocks]).reshape(3, 512)
    assert ours.shape == (3, 512)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_known_values_of_two_types_worked_out_by_hand() -> None:
    # Q8_0: scale 0.5, numbers -16..15. Q4_1: scale 0.25, minimum -1, all low nibbles 3 and all high ones 15.
    q8 = np.concatenate([np.array([0.5], "<f2").view(np.uint8), np.arange(-16, 16, dtype=np.int8).view(np.uint8)])
    assert dequantize(KINDS["Q8_0"], q8[None]).tolist() == [[q / 2 for q in range(-16, 16)]]
    q4 = np.concatenate([np.array([0.25, -1.0], "<f2").view(np.uint8), np.full(16, 0xF3, np.uint8)])
    assert dequantize(KINDS["Q4_1"], q4[None]).tolist() == [[-0.25] * 16 + [2.75] * 16]


def test_long_tensors_are_dequantized_in_pieces_that_join() -> None:
    data = stored("Q8_0", (700, 1024), seed=3)  # more than two pieces, and a last one that is shorter
    np.testing.assert_array_equal(
        dequantize(KINDS["Q8_0"], data), gguf.quants.dequantize(data, gguf.GGMLQuantizationType.Q8_0)
    )


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_type_reads_as_the_gguf_package_does(tmp_path: Path, kind: str) -> None:
    path = write_llama(tmp_path / "x.gguf", kind)
    source = source_of(path)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    down = theirs["blk.1.ffn_down.weight"]
    expected = gguf.quants.dequantize(down.data, down.tensor_type).reshape(256, 512)
    found = source.read("model.layers.1.mlp.down_proj.weight")
    assert found.dtype == {"F16": np.float16, "BF16": ml_dtypes.bfloat16}.get(kind, np.float32)
    np.testing.assert_array_equal(found.astype(np.float32), expected)
    assert source.shape("model.layers.1.mlp.down_proj.weight") == (256, 512)


@pytest.mark.parametrize("kind", ["F32", "Q4_K", "BF16"])
def test_the_rotation_of_queries_and_keys_is_undone(tmp_path: Path, kind: str) -> None:
    tensors = llama_tensors(kind)
    original = {}
    for name, heads in (("attn_q", 8), ("attn_k", 4)):
        key = f"blk.0.{name}.weight"
        original[name] = tensors[key][1]
        tensors[key] = kind, rotated(tensors[key][1], heads)
        assert not np.array_equal(tensors[key][1], original[name])
    source = source_of(write(tmp_path / "x.gguf", "llama", LLAMA, tensors))
    for name, proj in (("attn_q", "q_proj"), ("attn_k", "k_proj")):
        found = source.read(f"model.layers.0.self_attn.{proj}.weight")
        np.testing.assert_array_equal(
            found.astype(np.float32), dequantize(KINDS[kind], original[name].view(np.uint8)).astype(np.float32)
        )
        blocks = source.blocks(f"model.layers.0.self_attn.{proj}.weight")
        assert blocks is not None
        np.testing.assert_array_equal(blocks.read(), original[name].view(np.uint8))
        assert (blocks.kind, blocks.shape) == (kind, found.shape)


def test_a_rotated_bias_is_undone_too(tmp_path: Path) -> None:
    tensors = llama_tensors()
    bias = np.arange(256, dtype=np.float32)
    for layer in range(2):
        tensors[f"blk.{layer}.attn_q.bias"] = "F32", rotated(bias, 8)
    checkpoint = open_checkpoint(write(tmp_path / "x.gguf", "llama", LLAMA, tensors))
    assert checkpoint.config["attention_bias"] is True
    np.testing.assert_array_equal(checkpoint.source.read("model.layers.1.self_attn.q_proj.bias"), bias)


def test_gemma_norms_come_back_without_the_one_that_was_added(tmp_path: Path) -> None:
    tensors = gemma_tensors()
    source = source_of(write(tmp_path / "x.gguf", "gemma3", GEMMA3, tensors))
    norms = [name for name in source.names() if "norm" in name]
    assert len(norms) == 2 * 6 + 1
    expected = tensors["blk.1.post_ffw_norm.weight"][1] - np.float32(1)
    np.testing.assert_array_equal(source.read("model.layers.1.post_feedforward_layernorm.weight"), expected)
    assert source.blocks("model.norm.weight") is None
    # Gemma's queries are not permuted.
    query = tensors["blk.0.attn_q.weight"][1]
    np.testing.assert_array_equal(source.read("model.layers.0.self_attn.q_proj.weight"), query)


def test_names_are_hugging_faces_and_unknown_tensors_keep_their_own(tmp_path: Path) -> None:
    tensors = llama_tensors() | {"blk.0.mystery.weight": ("F32", np.zeros(3, np.float32))}
    source = source_of(write(tmp_path / "x.gguf", "llama", LLAMA, tensors))
    assert {"model.embed_tokens.weight", "model.norm.weight", "blk.0.mystery.weight"} <= set(source.names())
    assert "model.layers.1.post_attention_layernorm.weight" in source.names()
    assert len(source.names()) == len(tensors)


def test_heads_that_do_not_divide_the_rows_are_an_error(tmp_path: Path) -> None:
    file = GgufFile(write_llama(tmp_path / "x.gguf"))
    with pytest.raises(CheckpointError, match="does not divide into 7 heads"):
        GgufSource(file, "llama", (7, 4))
