"""Small configs of the parts of image models, as their config.json would say them."""

from __future__ import annotations

from typing import Any

CLIP: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "projection_dim": 32,
}
CLIPS: dict[str, dict[str, Any]] = {
    "clip": CLIP,
    "clip-projected": {
        **CLIP,
        "architectures": ["CLIPTextModelWithProjection"],
        "hidden_size": 40,
        "num_attention_heads": 5,
        "num_hidden_layers": 2,
        "hidden_act": "gelu",
        "projection_dim": 24,
    },
    "clip-eos": {**CLIP, "num_hidden_layers": 1, "eos_token_id": 97, "layer_norm_eps": 1e-3},
}

T5: dict[str, Any] = {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "vocab_size": 99,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 37,
    "num_heads": 4,
    "num_layers": 3,
    "feed_forward_proj": "gated-gelu",
    "dense_act_fn": "gelu_new",
    "is_gated_act": True,
    "is_encoder_decoder": True,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "tie_word_embeddings": False,
}
T5S: dict[str, dict[str, Any]] = {
    "t5": T5,
    "t5-relu": {
        **T5,
        "feed_forward_proj": "relu",
        "dense_act_fn": "relu",
        "is_gated_act": False,
        "d_kv": 6,
        "num_heads": 3,
        "num_layers": 1,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 20,
        "layer_norm_epsilon": 1e-3,
    },
}

FLUX: dict[str, Any] = {
    "_class_name": "FluxTransformer2DModel",
    "patch_size": 1,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 20,
    "axes_dims_rope": [4, 4, 8],
    "guidance_embeds": True,
}
FLUXES: dict[str, dict[str, Any]] = {
    "dev": FLUX,
    "schnell": {
        **FLUX,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_attention_heads": 2,
        "guidance_embeds": False,
        "axes_dims_rope": [2, 6, 8],
    },
    "fill": {**FLUX, "in_channels": 12, "out_channels": 4, "num_single_layers": 1, "patch_size": 1},
}

KINDS = {
    **dict.fromkeys(T5S, "T5EncoderModel"),
    **dict.fromkeys(FLUXES, "FluxTransformer2DModel"),
    **{name: config["architectures"][0] for name, config in CLIPS.items()},
}
"""The class of each variant in model_index.json."""
VARIANTS = {**CLIPS, **T5S, **FLUXES}
