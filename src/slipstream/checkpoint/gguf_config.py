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


def _plain(keys: Metadata, model_type: str, architecture: str) -> dict[str, Any]:
    """A model with one size of head, all of it rotated by one table."""
    shared = shared_keys(keys)
    head_dim = whole_heads(keys, shared["hidden_size"] // shared["num_attention_heads"])
    return shared | _named(model_type, architecture) | {"head_dim": head_dim} | rope_keys(keys, head_dim)


def _has_bias(keys: Metadata, stem: str) -> bool:
    return f"blk.0.{stem}.bias" in keys.file.tensors


def _llama(keys: Metadata) -> dict[str, Any]:
    window = keys.integer("attention.sliding_window", 0)
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
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "olmo2": _olmo2,
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
