from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slipstream.checkpoint import open_checkpoint
from slipstream.errors import CheckpointError, UnknownConfigKeys, UnsupportedModel
from tests.checkpoint.gguf_files import GEMMA3, LLAMA, gemma_tensors, llama_tensors, write, write_llama


def llama_config(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return dict(open_checkpoint(write_llama(tmp_path / "x.gguf", **changes)).config)


def gemma_config(tmp_path: Path, changes: dict[str, Any]) -> dict[str, Any]:
    return dict(open_checkpoint(write(tmp_path / "x.gguf", "gemma3", GEMMA3 | changes, gemma_tensors())).config)


def test_llama(tmp_path: Path) -> None:
    assert llama_config(tmp_path) == {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 12,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
    }


def test_gemma3_defaults_for_the_keys_that_files_leave_out(tmp_path: Path) -> None:
    config = gemma_config(tmp_path, {})
    assert config["model_type"] == "gemma3_text"
    assert config["layer_types"] == ["sliding_attention"] * 2
    assert config["rope_local_base_freq"] == 10000.0
    assert config["rope_theta"] == 1e6
    assert config["query_pre_attn_scalar"] == 32
    assert config["sliding_window"] == 16
    assert config["rms_norm_eps"] == 1e-6
    assert config["tie_word_embeddings"] is True


def test_gemma3_layer_pattern_and_scaling(tmp_path: Path) -> None:
    prefix = "gemma3."
    config = gemma_config(
        tmp_path,
        {
            prefix + "attention.sliding_window_pattern": 2,
            prefix + "rope.scaling.type": "linear",
            prefix + "rope.scaling.factor": 8.0,
            prefix + "rope.freq_base_swa": 5000.0,
        },
    )
    assert config["layer_types"] == ["sliding_attention", "full_attention"]
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert config["rope_local_base_freq"] == 5000.0
    flags = gemma_config(tmp_path, {prefix + "attention.sliding_window_pattern": [False, True]})
    assert flags["layer_types"] == ["full_attention", "sliding_attention"]


def test_an_output_matrix_unties_the_head(tmp_path: Path) -> None:
    tensors = llama_tensors() | {"output.weight": ("F32", np.zeros((12, 256), np.float32))}
    checkpoint = open_checkpoint(write(tmp_path / "x.gguf", "llama", LLAMA, tensors))
    assert checkpoint.config["tie_word_embeddings"] is False
    assert "lm_head.weight" in checkpoint.source.names()


def test_rope_scalings(tmp_path: Path) -> None:
    assert llama_config(tmp_path, llama__rope__scaling__type="linear", llama__rope__scaling__factor=2.0)[
        "rope_scaling"
    ] == {"rope_type": "linear", "factor": 2.0}
    yarn = llama_config(
        tmp_path,
        llama__rope__scaling__type="yarn",
        llama__rope__scaling__factor=4.0,
        llama__rope__scaling__original_context_length=32,
        llama__rope__scaling__attn_factor=0.5,
    )
    assert yarn["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "attention_factor": pytest.approx(0.5 * (0.1 * np.log(4.0) + 1.0)),
    }
    assert llama_config(tmp_path, llama__rope__scaling__type="none")["rope_scaling"] is None
    with pytest.raises(UnsupportedModel, match="longrope"):
        llama_config(tmp_path, llama__rope__scaling__type="longrope")


def test_llama3_factors_come_from_their_tensor(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, 16, dtype=np.float32)
    tensors = llama_tensors() | {"rope_freqs.weight": ("F32", factors)}
    checkpoint = open_checkpoint(write(tmp_path / "x.gguf", "llama", LLAMA, tensors))
    assert checkpoint.config["rope_scaling"] == {"rope_type": "factors", "factors": factors.tolist()}
    np.testing.assert_array_equal(checkpoint.source.read("rope_freqs.weight"), factors)
    for wrong in (np.zeros(16, np.float32), np.full(16, np.nan, np.float32), np.ones(5, np.float32)):
        tensors["rope_freqs.weight"] = "F32", wrong
        with pytest.raises(CheckpointError, match="rope_freqs"):
            open_checkpoint(write(tmp_path / "x.gguf", "llama", LLAMA, tensors))


def test_a_window_makes_it_mistral(tmp_path: Path) -> None:
    config = llama_config(tmp_path, llama__attention__sliding_window=64)
    assert (config["model_type"], config["sliding_window"]) == ("mistral", 64)


def test_one_value_for_each_layer_is_read_where_all_are_equal(tmp_path: Path) -> None:
    assert llama_config(tmp_path, llama__attention__head_count_kv=[4, 4])["num_key_value_heads"] == 4
    with pytest.raises(UnsupportedModel, match="differs from layer to layer"):
        llama_config(tmp_path, llama__attention__head_count_kv=[4, 2])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"llama__expert_count": 8}, CheckpointError, "llama.expert_used_count is missing"),
        ({"llama__attention__causal": False}, UnsupportedModel, "reads both ways"),
        ({"llama__pooling_type": 1}, UnknownConfigKeys, "llama.pooling_type"),
        ({"llama__rope__dimension_count": 16}, UnsupportedModel, "part of the head"),
        ({"llama__attention__value_length": 16}, UnsupportedModel, "different sizes"),
        ({"llama__attention__mystery": 1}, UnknownConfigKeys, "llama.attention.mystery"),
        ({"llama__logit_scale": 2.0}, UnknownConfigKeys, "llama.logit_scale"),
        ({"llama__block_count": None}, CheckpointError, "block_count is missing"),
        ({"llama__block_count": 0}, CheckpointError, "not a positive integer"),
        ({"llama__block_count": 60000}, CheckpointError, "not a positive integer below"),
        ({"llama__embedding_length": "wide"}, CheckpointError, "not a positive integer"),
        ({"llama__attention__head_count": True}, CheckpointError, "not a positive integer"),
        ({"llama__attention__head_count": 512}, CheckpointError, "larger than the embedding"),
        ({"llama__rope__freq_base": float("nan")}, CheckpointError, "not a number"),
        ({"llama__rope__freq_base": "big"}, CheckpointError, "not a number"),
        ({"split__count": 3}, UnsupportedModel, "split GGUF"),
    ],
)
def test_what_cannot_be_served_says_why(
    tmp_path: Path, changes: dict[str, Any], error: type[CheckpointError], message: str
) -> None:
    with pytest.raises(error, match=message):
        llama_config(tmp_path, **changes)


def test_other_architectures_are_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", "mamba", {}, llama_tensors())
    with pytest.raises(
        UnsupportedModel, match=r"'mamba' is not served; those that are: deepseek2, gemma2, gemma3, gpt-oss, "
    ):
        open_checkpoint(path)


def test_a_file_without_an_embedding_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", "llama", LLAMA, {"blk.0.ffn_up.weight": ("F32", np.zeros((4, 4), np.float32))})
    with pytest.raises(CheckpointError, match="not a whole language model"):
        open_checkpoint(path)
