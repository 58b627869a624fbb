"""config.json of published dense models, without the keys that change nothing in any family (`keys.INERT`)."""

from __future__ import annotations

from typing import Any


def _sizes(layers: int, width: int, hidden: int, heads: int, kv_heads: int, vocab_size: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab_size,
    }


_MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0,
            "hidden_act": "silu", "initializer_range": 0.02, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
            "transformers_version": "4.42.0.dev0", "use_cache": True}  # fmt: skip
_QWEN2 = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "hidden_act": "silu",
          "initializer_range": 0.02, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "torch_dtype": "bfloat16",
          "use_cache": True, "use_sliding_window": False, "bos_token_id": 151643, "eos_token_id": 151645}  # fmt: skip
_QWEN3 = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "head_dim": 128,
          "attention_dropout": 0.0, "hidden_act": "silu", "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
          "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": False,
          "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False}  # fmt: skip
_GEMMA2 = {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "attention_bias": False,
           "attention_dropout": 0.0, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
           "cache_implementation": "hybrid", "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
           "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192, "pad_token_id": 0,
           "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
           "sliding_window": 4096}  # fmt: skip
_PHI3 = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
         "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
         "hidden_act": "silu", "initializer_range": 0.02, "original_max_position_embeddings": 4096,
         "pad_token_id": 32000, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}  # fmt: skip
_LONGROPE = {"type": "longrope", "short_factor": [1.0 + i / 48 for i in range(48)], "long_factor": list(range(1, 49))}
_OLMO2 = {"model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"], "attention_bias": False, "attention_dropout":
          0.0, "hidden_act": "silu", "max_position_embeddings": 4096, "pad_token_id": 100277, "rms_norm_eps": 1e-6,
          "rope_scaling": None, "rope_theta": 500000, "tie_word_embeddings": False}  # fmt: skip
_GRANITE = {"model_type": "granite", "architectures": ["GraniteForCausalLM"], "attention_bias": False,
            "attention_dropout": 0.1, "embedding_multiplier": 12.0, "hidden_act": "silu", "mlp_bias": False,
            "max_position_embeddings": 131072, "residual_multiplier": 0.22, "rms_norm_eps": 1e-5,
            "rope_scaling": None, "tie_word_embeddings": True, "use_cache": True}  # fmt: skip

PUBLISHED: dict[str, dict[str, Any]] = {
    "mistralai/Mistral-7B-v0.1": {**_MISTRAL, **_sizes(32, 4096, 14336, 32, 8, 32000), "rope_theta": 10000.0,
                                  "max_position_embeddings": 32768, "sliding_window": 4096},
    "mistralai/Mistral-7B-Instruct-v0.3": {**_MISTRAL, **_sizes(32, 4096, 14336, 32, 8, 32768), "sliding_window": None,
                                           "max_position_embeddings": 32768, "rope_theta": 1000000.0},
    "mistralai/Mistral-Nemo-Instruct-2407": {**_MISTRAL, **_sizes(40, 5120, 14336, 32, 8, 131072), "head_dim": 128,
                                             "max_position_embeddings": 1024000, "rope_theta": 1000000.0,
                                             "sliding_window": None},
    "mistralai/Mistral-Small-24B-Instruct-2501": {**_MISTRAL, **_sizes(40, 5120, 32768, 32, 8, 131072),
                                                  "head_dim": 128, "max_position_embeddings": 32768,
                                                  "rope_theta": 100000000.0, "sliding_window": None},
    "Qwen/Qwen2-7B": {**_QWEN2, **_sizes(28, 3584, 18944, 28, 4, 152064), "max_position_embeddings": 131072,
                      "max_window_layers": 28, "sliding_window": 131072, "tie_word_embeddings": False},
    "Qwen/Qwen2.5-0.5B-Instruct": {**_QWEN2, **_sizes(24, 896, 4864, 14, 2, 151936), "max_position_embeddings": 32768,
                                   "max_window_layers": 21, "sliding_window": 32768, "tie_word_embeddings": True},
    "Qwen/Qwen2.5-7B": {**_QWEN2, **_sizes(28, 3584, 18944, 28, 4, 152064), "max_position_embeddings": 131072,
                        "max_window_layers": 28, "sliding_window": 131072, "tie_word_embeddings": False,
                        "use_mrope": False},
    "Qwen/Qwen3-8B": {**_QWEN3, **_sizes(36, 4096, 12288, 32, 8, 151936), "max_window_layers": 36},
    "Qwen/Qwen3-32B": {**_QWEN3, **_sizes(64, 5120, 25600, 64, 8, 151936), "max_window_layers": 64},
    "google/gemma-2-2b-it": {**_GEMMA2, **_sizes(26, 2304, 9216, 8, 4, 256000)},
    "google/gemma-2-9b": {**_GEMMA2, **_sizes(42, 3584, 14336, 16, 8, 256000), "sliding_window_size": 4096},
    "google/gemma-2-27b": {**_GEMMA2, **_sizes(46, 4608, 36864, 32, 16, 256000), "head_dim": 128,
                           "query_pre_attn_scalar": 144, "sliding_window_size": 4096},
    "microsoft/Phi-3-mini-4k-instruct": {**_PHI3, **_sizes(32, 3072, 8192, 32, 32, 32064), "sliding_window": 2047,
                                         "max_position_embeddings": 4096, "rope_scaling": None,
                                         "tie_word_embeddings": False},
    "microsoft/Phi-3.5-mini-instruct": {**_PHI3, **_sizes(32, 3072, 8192, 32, 32, 32064), "rope_scaling": _LONGROPE,
                                        "max_position_embeddings": 131072, "sliding_window": 262144,
                                        "tie_word_embeddings": False},
    "microsoft/Phi-4-mini-instruct": {**_PHI3, **_sizes(32, 3072, 8192, 24, 8, 200064), "rope_scaling": _LONGROPE,
                                      "max_position_embeddings": 131072, "sliding_window": 262144,
                                      "partial_rotary_factor": 0.75, "tie_word_embeddings": True, "mlp_bias": False,
                                      "lm_head_bias": False, "full_attn_mod": 1, "interpolate_factor": 1},
    "allenai/OLMo-2-1124-7B": {**_OLMO2, **_sizes(32, 4096, 11008, 32, 32, 100352)},
    "ibm-granite/granite-3.1-2b-instruct": {**_GRANITE, **_sizes(40, 2048, 8192, 32, 8, 49155), "rope_theta": 5000000.0,
                                            "attention_multiplier": 0.015625, "logits_scaling": 8.0},
    "ibm-granite/granite-3.1-8b-instruct": {**_GRANITE, **_sizes(40, 4096, 12800, 32, 8, 49155), "rope_theta": 1e7,
                                            "attention_multiplier": 0.0078125, "logits_scaling": 16.0},
}  # fmt: skip
