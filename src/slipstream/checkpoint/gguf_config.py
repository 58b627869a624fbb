"""A GGUF's metadata as the config.json that Hugging Face would have for the same model: a function an architecture.

The values that GGUF leaves out are those that llama.cpp fills in when it loads the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from slipstream.checkpoint.gguf_file import GgufFile
from slipstream.checkpoint.gguf_metadata import Metadata, head_sizes, rope_factors, rope_keys, shared_keys, whole_heads
from slipstream.errors import UnsupportedModel


def _named(model_type: str, architecture: str) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": [architecture]}


def _plain(keys: Metadata, model_type: str, architecture: str, *, experts: bool = False) -> dict[str, Any]:
    """A model with one size of head, all of it rotated by one table."""
    shared = shared_keys(keys, experts=experts)
    head_dim = whole_heads(keys, shared["hidden_size"] // shared["num_attention_heads"])
    return shared | _named(model_type, architecture) | {"head_dim": head_dim} | rope_keys(keys, head_dim)


def _has_bias(keys: Metadata, stem: str) -> bool:
    return f"blk.0.{stem}.bias" in keys.file.tensors


def _experts(keys: Metadata, count: str) -> dict[str, Any]:
    """How many experts there are, under the key `count`, and how many a token gets."""
    return {count: keys.integer("expert_count"), "num_experts_per_tok": keys.integer("expert_used_count")}


def _llama(keys: Metadata) -> dict[str, Any]:
    window = keys.integer("attention.sliding_window", 0)
    if keys.raw("expert_count"):
        whole = _plain(keys, "mixtral", "MixtralForCausalLM", experts=True)
        return whole | {"hidden_act": "silu", "sliding_window": window or None, **_experts(keys, "num_local_experts")}
    if window:
        return _plain(keys, "mistral", "MistralForCausalLM") | {"hidden_act": "silu", "sliding_window": window}
    return _plain(keys, "llama", "LlamaForCausalLM") | {
        "hidden_act": "silu",
        "attention_bias": _has_bias(keys, "attn_q"),
        "mlp_bias": _has_bias(keys, "ffn_up"),
    }


def _qwen2(keys: Metadata) -> dict[str, Any]:
    return _plain(keys, "qwen2", "Qwen2ForCausalLM")


def _qwen3(keys: Metadata) -> dict[str, Any]:
    return _plain(keys, "qwen3", "Qwen3ForCausalLM") | {"attention_bias": _has_bias(keys, "attn_q")}


def _qwen3moe(keys: Metadata) -> dict[str, Any]:
    return _plain(keys, "qwen3_moe", "Qwen3MoeForCausalLM", experts=True) | {
        "attention_bias": _has_bias(keys, "attn_q"),
        "moe_intermediate_size": keys.integer("expert_feed_forward_length"),
        "norm_topk_prob": keys.raw("expert_weights_norm") is not False,  # older files do not say it
        **_experts(keys, "num_experts"),
    }


def _gpt_oss(keys: Metadata) -> dict[str, Any]:
    config = _plain(keys, "gpt_oss", "GptOssForCausalLM", experts=True)
    scaling = config["rope_scaling"]
    return config | {
        "attention_bias": _has_bias(keys, "attn_q"),
        "intermediate_size": keys.integer("expert_feed_forward_length", config["intermediate_size"]),
        "sliding_window": keys.integer("attention.sliding_window", 128),
        # The metadata cannot say that the ends of yarn's ramp are not rounded; in these models they are not.
        "rope_scaling": scaling | {"truncate": False} if scaling and scaling["rope_type"] == "yarn" else scaling,
        **_experts(keys, "num_local_experts"),
    }


_GATINGS = {1: "softmax", 2: "sigmoid"}


def _deepseek2(keys: Metadata) -> dict[str, Any]:
    """DeepSeek V2 and V3, and Kimi K2. The sizes of a head are keys of their own, but in older files."""
    shared = shared_keys(keys, experts=True)
    gating = keys.integer("expert_gating_func", 1)
    if gating not in _GATINGS:
        raise keys.fail("expert_gating_func", f"is {gating}; those served are {_GATINGS}")
    latent, turned = keys.integer("attention.kv_lora_rank"), keys.integer("rope.dimension_count")
    key, value = keys.integer("attention.key_length"), keys.integer("attention.value_length")
    key, value = keys.integer("attention.key_length_mla", key), keys.integer("attention.value_length_mla", value)
    groups, open_groups = keys.integer("expert_group_count", 1), keys.integer("expert_group_used_count", 1)
    corrected = any(name.endswith(".exp_probs_b.bias") for name in keys.file.tensors)
    in_groups = "group_limited_greedy" if groups > 1 else "greedy"
    return shared | {
        **_named("deepseek_v3", "DeepseekV3ForCausalLM"),
        "num_key_value_heads": shared["num_attention_heads"],
        "kv_lora_rank": latent,
        "q_lora_rank": keys.integer("attention.q_lora_rank", 0, least=0) or None,
        "qk_rope_head_dim": turned,
        "qk_nope_head_dim": key - turned,
        "v_head_dim": value,
        **_deepseek_rope(keys, turned),
        "first_k_dense_replace": keys.integer("leading_dense_block_count", 0, least=0),
        "moe_intermediate_size": keys.integer("expert_feed_forward_length"),
        "n_shared_experts": keys.integer("expert_shared_count", 0, least=0),
        "routed_scaling_factor": keys.number("expert_weights_scale", 1.0),
        "norm_topk_prob": keys.raw("expert_weights_norm") is True,
        "scoring_func": _GATINGS[gating],
        "topk_method": "noaux_tc" if corrected else in_groups,
        "n_group": groups,
        "topk_group": open_groups,
        **_experts(keys, "n_routed_experts"),
    }


def _deepseek_rope(keys: Metadata, turned: int) -> dict[str, Any]:
    """Of mscale and mscale_all_dim a file has one, times 0.1; they are equal in all models."""
    rope = rope_keys(keys, turned)
    multiplier = keys.number("rope.scaling.yarn_log_multiplier")
    if rope["rope_scaling"] and multiplier:
        mscale = float(f"{multiplier * 10:.6g}")
        rope["rope_scaling"] |= {"mscale": mscale, "mscale_all_dim": mscale}
    return rope


def _olmo2(keys: Metadata) -> dict[str, Any]:
    return _plain(keys, "olmo2", "Olmo2ForCausalLM")


def _granite(keys: Metadata) -> dict[str, Any]:
    config = _plain(keys, "granite", "GraniteForCausalLM")
    return config | {
        # 0 is how llama.cpp says that there is none.
        "embedding_multiplier": keys.number("embedding_scale") or 1.0,
        "attention_multiplier": keys.number("attention.scale") or config["head_dim"] ** -0.5,
        "residual_multiplier": keys.number("residual_scale") or 1.0,
        "logits_scaling": keys.number("logit_scale") or 1.0,
        "attention_bias": _has_bias(keys, "attn_q"),
        "mlp_bias": _has_bias(keys, "ffn_up"),
    }


# Phi 3's first files leave its window out. llama.cpp knows the models that had one within their context by these sizes.
_PHI3_4K, _PHI3_4K_WINDOW, _PHI3_LAYERS = 4096, 2047, (32, 40)


def _phi3(keys: Metadata) -> dict[str, Any]:
    shared = shared_keys(keys)
    head_dim, turned = head_sizes(keys, shared["hidden_size"] // shared["num_attention_heads"])
    length = shared["max_position_embeddings"]
    window = keys.raw("attention.sliding_window")
    if window is None and length == _PHI3_4K and shared["num_hidden_layers"] in _PHI3_LAYERS:
        window = _PHI3_4K_WINDOW
    short, long = (rope_factors(keys, f"rope_factors_{size}.weight", turned) for size in ("short", "long"))
    magnitude, scaling = keys.number("rope.scaling.attn_factor"), None
    if short and long:
        scaling = {"rope_type": "longrope", "short_factor": short, "long_factor": long, "attention_factor": magnitude}
    elif magnitude not in (None, 1.0):
        raise keys.fail("rope.scaling.attn_factor", "needs the tensors rope_factors_short and rope_factors_long")
    return (
        shared
        | _named("phi3", "Phi3ForCausalLM")
        | {
            "head_dim": head_dim,
            "partial_rotary_factor": turned / head_dim,
            "original_max_position_embeddings": keys.integer("rope.scaling.original_context_length", length),
            "rope_theta": keys.number("rope.freq_base", 10_000.0),
            "rope_scaling": scaling,
            "sliding_window": window or None,  # 0: none
        }
    )


# Gemma 2 27B alone scales its scores by the embedding's size over the heads, as Gemma 3 27B does; so llama.cpp has it.
_GEMMA2_27B_LAYERS = 46


def _gemma2(keys: Metadata) -> dict[str, Any]:
    shared = shared_keys(keys)
    head_dim = whole_heads(keys, 256)
    per_head = shared["hidden_size"] // shared["num_attention_heads"]
    return (
        shared
        | _named("gemma2", "Gemma2ForCausalLM")
        | rope_keys(keys, head_dim)
        | {
            "head_dim": head_dim,
            "sliding_window": keys.integer("attention.sliding_window", 4096),
            "query_pre_attn_scalar": per_head if shared["num_hidden_layers"] == _GEMMA2_27B_LAYERS else head_dim,
            "attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0),
        }
    )


# Gemma 3 27B alone scales its scores by the embedding's size over the heads. llama.cpp knows it by its layers as well.
_GEMMA3_27B_LAYERS = 62


def _gemma3(keys: Metadata) -> dict[str, Any]:
    shared = shared_keys(keys)
    layers = shared["num_hidden_layers"]
    head_dim = whole_heads(keys, 256)
    per_head = shared["hidden_size"] // shared["num_attention_heads"]
    return shared | {
        **_named("gemma3_text", "Gemma3ForCausalLM"),
        "head_dim": head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        **rope_keys(keys, head_dim, 1_000_000.0),
        "rope_local_base_freq": keys.number("rope.freq_base_swa", 10_000.0),
        "sliding_window": keys.integer("attention.sliding_window"),
        "layer_types": _layer_types(keys, layers),
        "query_pre_attn_scalar": per_head if layers == _GEMMA3_27B_LAYERS else head_dim,
        "attention_bias": False,
        "attn_logit_softcapping": keys.number("attn_logit_softcapping"),
        "final_logit_softcapping": keys.number("final_logit_softcapping"),
    }


def _layer_types(keys: Metadata, layers: int) -> list[str]:
    """Which layers attend in the window: a flag for each layer, or a period whose last layer sees everything."""
    pattern = keys.raw("attention.sliding_window_pattern")
    if isinstance(pattern, np.ndarray):
        if pattern.shape != (layers,):
            raise keys.fail("attention.sliding_window_pattern", f"has {pattern.size} entries for {layers} layers")
        local = [bool(flag) for flag in pattern]
    else:
        period = keys.integer("attention.sliding_window_pattern", 6)
        local = [(layer + 1) % period != 0 for layer in range(layers)]
    return ["sliding_attention" if flag else "full_attention" for flag in local]


_ARCHITECTURES: Mapping[str, Callable[[Metadata], dict[str, Any]]] = {
    "llama": _llama,
    "granite": _granite,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3moe,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "olmo2": _olmo2,
    "deepseek2": _deepseek2,
    "gpt-oss": _gpt_oss,
}


def architecture_of(file: GgufFile) -> str:
    """`general.architecture`. Raises UnsupportedModel for one that has no table here."""
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        known = ", ".join(sorted(_ARCHITECTURES))
        raise UnsupportedModel(f"{file.path}: GGUF architecture {name!r} is not served; those that are: {known}")
    parts = file.metadata.get("split.count")
    if isinstance(parts, int) and parts > 1:
        raise UnsupportedModel(f"{file.path} is one part of a split GGUF: join them with `llama-gguf-split --merge`")
    return name


def config_of(file: GgufFile) -> dict[str, Any]:
    """The metadata as config.json's keys. Raises CheckpointError (UnsupportedModel, UnknownConfigKeys)."""
    architecture = architecture_of(file)
    keys = Metadata(file, architecture)
    config = _ARCHITECTURES[architecture](keys)
    keys.finish()
    return config
