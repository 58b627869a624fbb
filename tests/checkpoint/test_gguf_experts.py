"""GGUFs of mixtures of experts: the same config and tensors as the checkpoint that they were made from.

The files are written here as llama.cpp's converter does it (conversion/*.py of its repository, read on 2026-11-23),
with the gguf package's own table of tensor names: experts stacked, DeepSeek's keys and values apart, gpt-oss's gate and
up apart.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from slipstream.checkpoint import open_checkpoint
from slipstream.checkpoint.loading import check
from slipstream.errors import CheckpointError, UnsupportedModel
from slipstream.models.registry import family
from slipstream.quant.scaled import values_of
from slipstream.spec.source import Scaled
from tests.checkpoint.gguf_files import write
from tests.checkpoint.test_gguf_families import COMMON
from tests.models.harness import random_source
from tests.models.moe_variants import DEEPSEEK2, DEEPSEEK3, GPT_OSS, MIXTRAL, MOE, QWEN3

KIMI = MOE["deepseek-v3-as-kimi-k2"]
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": {**MIXTRAL, "sliding_window": 9},
    "qwen3-moe": {**QWEN3, "attention_bias": True},
    "gpt-oss": {**GPT_OSS, "swiglu_limit": 7.0},  # a GGUF does not say it
    "deepseek-v3": {**DEEPSEEK3, "rope_scaling": {**DEEPSEEK3["rope_scaling"], "mscale": 0.7}},
    "deepseek-v3, older": {**DEEPSEEK3, "rope_scaling": {**DEEPSEEK3["rope_scaling"], "mscale": 0.7}},
    "kimi-k2": {**KIMI, "attention_bias": False},
    "deepseek-v2": {**DEEPSEEK2, "rope_scaling": None},
    "deepseek-v2-lite": {**MOE["deepseek-v2-lite"], "rope_scaling": None},
}
ARCHITECTURES = {
    "mixtral": "llama",
    "qwen3_moe": "qwen3moe",
    "gpt_oss": "gpt-oss",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
}
KEYS = {
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_count": "n_shared_experts",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_weights_norm": "norm_topk_prob",
    "leading_dense_block_count": "first_k_dense_replace",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
}
EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(.*)")


def metadata_of(config: dict[str, Any], *, older: bool) -> dict[str, Any]:
    """The metadata; an `older` file has DeepSeek's heads as they are."""
    found = {key: config[name] for key, name in (COMMON | KEYS).items() if config.get(name) is not None}
    found["expert_count"] = next(config[key] for key in config if key.endswith(("_experts", "local_experts")))
    found["rope.dimension_count"] = config.get("qk_rope_head_dim") or config["head_dim"]
    if "kv_lora_rank" in config:
        whole = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
        own = {"key_length": whole, "value_length": config["v_head_dim"]}
        latent = {"key_length": config["kv_lora_rank"] + config["qk_rope_head_dim"], "head_count_kv": 1}
        latent |= {"value_length": config["kv_lora_rank"], **{f"{key}_mla": size for key, size in own.items()}}
        found |= {f"attention.{key}": size for key, size in (own if older else latent).items()}
        found["expert_gating_func"] = 1 if config["model_type"] == "deepseek_v2" else 2
        if config["n_group"] > 1 and config.get("topk_method") != "greedy":
            found |= {"expert_group_count": config["n_group"], "expert_group_used_count": config["topk_group"]}
    if config["model_type"] == "gpt_oss":
        found["expert_feed_forward_length"] = config["intermediate_size"]
    if scaling := config.get("rope_scaling"):
        found |= {"rope.scaling.type": "yarn", "rope.scaling.factor": float(scaling["factor"])}
        found["rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
        found |= {f"rope.scaling.yarn_{name}": float(scaling[name]) for name in ("beta_fast", "beta_slow")}
        if "mscale_all_dim" in scaling:
            found["rope.scaling.yarn_log_multiplier"] = 0.1 * scaling["mscale_all_dim"]
    kind = ARCHITECTURES[config["model_type"]]
    return {f"{kind}.{key}": value for key, value in found.items()}


def convert(config: dict[str, Any], path: Path, *, older: bool = False, experts: str = "F32") -> Path:
    """The GGUF of a config with the weights of `random_source`, those of experts in the type `experts`."""
    kind = ARCHITECTURES[config["model_type"]]
    source = random_source(config)
    found: dict[str, np.ndarray] = {}
    stacks: dict[str, list[np.ndarray]] = {}
    for name in source.names():
        value = source.read(name)
        if kind == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            halves = value.reshape(heads, 2, value.shape[0] // heads // 2, -1)
            value = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(value.shape)
        if match := EXPERT.fullmatch(name):
            stacks.setdefault(f"{match[1]}.{match[3]}".replace("block_sparse_moe", "feed_forward"), []).append(value)
        elif kind == "gpt-oss" and "gate_up_proj" in name:
            for i, own in enumerate(("gate_proj", "up_proj")):
                part = value[..., i::2]
                part = part.swapaxes(-1, -2) if part.ndim == 3 else part
                end = ".bias" if name.endswith("_bias") else ".weight"
                found[name.replace("gate_up_proj", own).removesuffix("_bias") + end] = np.ascontiguousarray(part)
        elif kind == "gpt-oss" and name.endswith("experts.down_proj"):
            found[name + ".weight"] = np.ascontiguousarray(value.swapaxes(-1, -2))
        elif kind == "deepseek2" and "kv_b_proj" in name and not older:
            halves = value.reshape(config["num_attention_heads"], -1, value.shape[1])
            keys, values = np.split(halves, [config["qk_nope_head_dim"]], 1)
            found[name.replace("kv_b_proj", "k_b_proj")] = np.ascontiguousarray(keys.swapaxes(1, 2))
            found[name.replace("kv_b_proj", "v_b_proj")] = np.ascontiguousarray(values)
        else:
            found[name] = value
    found |= {name: np.stack(values) for name, values in stacks.items()}
    architecture = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    tensors: dict[str, tuple[str, np.ndarray]] = {}
    for name, value in found.items():
        said = name.replace("e_score_correction_bias", "e_score_correction.bias").replace(
            "down_proj_bias", "down_proj.bias"
        )
        said = said.removeprefix("model.") if "feed_forward" in said else said
        said = said if said.endswith((".weight", ".bias")) else said + ".weight"
        of = experts if value.ndim == 3 and "experts" in name else "F32"
        data = gguf.quants.quantize(value, gguf.GGMLQuantizationType[of])
        tensors[names.get_name(said, try_suffixes=(".weight", ".bias"))] = of, data
    return write(path, kind, metadata_of(config, older=older), tensors)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_and_tensors(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    checkpoint = open_checkpoint(convert(config, tmp_path / "x.gguf", older="older" in name))
    chosen = family(config)
    assert family(checkpoint.config) is chosen
    ours = chosen.from_hf(checkpoint.config)
    assert ours == chosen.from_hf(config)
    source = random_source(config)
    assert set(checkpoint.source.names()) == set(source.names())
    check(chosen.plan(ours), checkpoint.source)
    for tensor in source.names():
        assert checkpoint.source.shape(tensor) == source.shape(tensor)
        np.testing.assert_array_equal(checkpoint.source.read(tensor), source.read(tensor))


@pytest.mark.parametrize("base", [GPT_OSS, QWEN3])
def test_experts_in_mxfp4(base: dict[str, Any], tmp_path: Path) -> None:
    """Numbers and scales as the gguf package understands them, in the order of Hugging Face's files."""
    config = {**base, "intermediate_size": 64, "moe_intermediate_size": 64}
    config = config if base is QWEN3 else {key: config[key] for key in base}
    path = convert(config, tmp_path / "x.gguf", experts="MXFP4")
    source = open_checkpoint(path).source
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    gate, up, down = (
        gguf.quants.dequantize(stored[f"blk.1.ffn_{name}_exps.weight"].data, gguf.GGMLQuantizationType.MXFP4)
        for name in ("gate", "up", "down")
    )
    at = "model.layers.1.mlp.experts."
    if base is GPT_OSS:
        both = np.stack((gate, up), -2).reshape(gate.shape[0], -1, gate.shape[-1])
        expected = {at + "gate_up_proj": both.swapaxes(1, 2), at + "down_proj": down.swapaxes(1, 2)}
    else:
        expected = {f"{at}5.{name}_proj.weight": values[5] for name, values in (("up", up), ("down", down))}
    for name, values in expected.items():
        np.testing.assert_array_equal(source.read(name), values)
        found = source.blocks(name)
        assert isinstance(found, Scaled)
        assert (found.number, found.shape) == ("fp4_e2m1", values.shape)
        np.testing.assert_array_equal(values_of(found), values)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"expert_gating_func": 3}, CheckpointError, "expert_gating_func is 3"),
        ({"expert_used_count": None}, CheckpointError, "expert_used_count is missing"),
        ({"attention.causal": False}, UnsupportedModel, "reads both ways"),
    ],
)
def test_what_cannot_be_served_says_why(
    tmp_path: Path, changes: dict[str, Any], error: type[CheckpointError], message: str
) -> None:
    config = CONFIGS["deepseek-v3"]
    metadata = metadata_of(config, older=False) | {f"deepseek2.{key}": value for key, value in changes.items()}
    kept = {key: value for key, value in metadata.items() if value is not None}
    embedding = np.zeros((config["vocab_size"], config["hidden_size"]), np.float32)
    tensors = {f"{name}.weight": ("F32", embedding) for name in ("token_embd", "a", "b", "c", "d")}
    with pytest.raises(error, match=message):
        open_checkpoint(write(tmp_path / "x.gguf", "deepseek2", kept, tensors))
