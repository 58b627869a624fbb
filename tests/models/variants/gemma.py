"""Gemma 2 and 3."""

from __future__ import annotations

from typing import Any

GEMMA2: dict[str, Any] = {
    "model_type": "gemma2",
    "architectures": ["Gemma2ForCausalLM"],
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 256,
    "query_pre_attn_scalar": 10,
    "sliding_window": 7,
    # Far below the published 50 and 30, so that random weights reach them.
    "attn_logit_softcapping": 0.8,
    "final_logit_softcapping": 2.0,
}

GEMMA3: dict[str, Any] = {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 12,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 10,
    "sliding_window": 7,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "gemma2": GEMMA2,
    "gemma2-untied-mha-uncapped": {**GEMMA2, "tie_word_embeddings": False, "num_key_value_heads": 4,
                                   "attn_logit_softcapping": None, "final_logit_softcapping": None},
    "gemma2-linear-pattern": {**GEMMA2, "num_key_value_heads": 1, "num_hidden_layers": 4,
                              "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "layer_types":
                              ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]},
    "gemma3": GEMMA3,
    "gemma3-untied-gqa": {**GEMMA3, "tie_word_embeddings": False, "num_key_value_heads": 2, "num_hidden_layers": 7},
    "gemma3-linear": {**GEMMA3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "gemma3-pattern": {**GEMMA3, "num_hidden_layers": 5, "layer_types": ["full_attention", "sliding_attention",
                       "sliding_attention", "full_attention", "full_attention"]},
    "gemma3-final-cap": {**GEMMA3, "final_logit_softcapping": 2.0, "num_hidden_layers": 6},
}  # fmt: skip
