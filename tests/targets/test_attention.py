"""Attention of every kind in engines' steps, compiled by Mosaic: caches of bytes, sinks, latents. Two layers each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from slipstream.checkpoint.outline import outline
from slipstream.engine.target import Outlined
from slipstream.engine.target_options import TargetOptions

pytestmark = pytest.mark.long
MIB = 2**20

LLAMA = {**outline("llama-3.1-8b"), "num_hidden_layers": 2}
# gpt-oss-20b with few experts.
GPT_OSS: dict[str, Any] = {
    "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "vocab_size": 201088, "hidden_size": 2880,
    "intermediate_size": 2880, "num_hidden_layers": 2, "num_attention_heads": 64, "num_key_value_heads": 8,
    "head_dim": 64, "hidden_act": "silu", "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
    "rope_theta": 150000.0, "sliding_window": 128, "swiglu_limit": 7.0, "num_local_experts": 8,
    "num_experts_per_tok": 4,
}  # fmt: skip
# DeepSeek-V2-Lite with few experts.
DEEPSEEK: dict[str, Any] = {
    "model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"], "vocab_size": 102400, "hidden_size": 2048,
    "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 2, "num_attention_heads": 16,
    "num_key_value_heads": 16, "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "hidden_act": "silu", "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "n_routed_experts": 8, "n_shared_experts": 2,
    "num_experts_per_tok": 6, "first_k_dense_replace": 1, "norm_topk_prob": False, "scoring_func": "softmax",
    "topk_method": "greedy", "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "target", "kv_dtype", "prefill"),
    [
        pytest.param(LLAMA, "v5e-4", "int8", 128, id="int8-v5e"),
        pytest.param(LLAMA, "v5e-4", "fp8", 128, id="fp8-v5e"),
        # It copies a table of 276 MiB: what suits decoding does not suit it.
        pytest.param(GPT_OSS, "v5e-4", "auto", 320, id="sinks-v5e"),
        pytest.param(DEEPSEEK, "v5e-4", "auto", 128, id="latent-v5e"),
    ],
)
def test_steps_keep_their_cache_in_place(config: dict[str, Any], target: str, kv_dtype: Any, prefill: int) -> None:
    """The prefill step has the attention of decoding rows and of chunks. `prefill`: MiB of temporaries at most."""
    options = TargetOptions(target=target, kv_dtype=kv_dtype, max_seqs=16, max_batched_tokens=256, max_model_len=4096)
    outlined = Outlined.of(config, options)
    kv = outlined.lowering.kv
    pages = 256 * MIB // kv.bytes_per_page
    outlined, decode = outlined.settled(pages)
    for step, most in ((decode, 96), (outlined.compile(outlined.shapes.mixed[-1], pages), prefill)):
        assert pages * kv.bytes_per_page <= step.donated < 258 * MIB, "the cache is copied, or its arrays are filled up"
        assert step.temporaries < most * MIB


def test_tokens_are_spread_between_products() -> None:
    """With --sp what devices add up stays in parts, and is gathered before the next product."""
    options = TargetOptions(target="v5e-4", max_seqs=64, max_model_len=4096)
    spread = Outlined.of(LLAMA, replace(options, sp=True))
    pages = 64
    step = spread.compile(spread.shapes.decode[-1], pages)
    assert step.collectives.looped == {"reduce-scatter": 2, "all-gather": 2}
    assert step.collectives.once == {"reduce-scatter": 1, "all-gather": 2}
