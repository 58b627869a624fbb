"""Small configs of the families with mixtures of experts, as config.json would say them."""

from __future__ import annotations

from typing import Any

MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
}

QWEN3: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "vocab_size": 89,
    "hidden_size": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "norm_topk_prob": True,
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
}

MOE: dict[str, dict[str, Any]] = {
    "mixtral": MIXTRAL,
    "mixtral-tied-window": {**MIXTRAL, "tie_word_embeddings": True, "sliding_window": 9, "num_key_value_heads": 4},
    "mixtral-all-experts": {**MIXTRAL, "num_local_experts": 3, "num_experts_per_tok": 3, "num_key_value_heads": 1},
    "qwen3-moe": QWEN3,
    "qwen3-moe-shares-as-they-are": {**QWEN3, "norm_topk_prob": False, "tie_word_embeddings": True,
                                     "num_experts_per_tok": 1, "num_key_value_heads": 4},
    "qwen3-moe-biased-window-yarn": {**QWEN3, "attention_bias": True, "use_sliding_window": True, "sliding_window": 9,
                                     "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 100.0,
                                                      "original_max_position_embeddings": 32}},
}  # fmt: skip
