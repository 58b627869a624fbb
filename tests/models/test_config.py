"""config.json to Config and plan: both styles of rotary keys, defaults, and refusal of what no code reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from slipstream.errors import CheckpointError, UnknownConfigKeys, UnsupportedModel
from slipstream.models.llm import gemma3, llama, phi3
from slipstream.models.llm.stack import Kind, within
from slipstream.models.registry import FAMILIES, family
from slipstream.spec.param import Param, params
from tests.models.variants import VARIANTS, qwen
from tests.models.variants.gemma import GEMMA2, GEMMA3
from tests.models.variants.granite import GRANITE
from tests.models.variants.llama import LLAMA
from tests.models.variants.olmo2 import OLMO2
from tests.models.variants.phi3 import PHI3

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


def plan_of(config: dict[str, Any]) -> dict[str, Param]:
    chosen = family(config)
    return dict(params(chosen.plan(chosen.from_hf(config))))


SANDWICHED = ("attention_norm", "attention_out_norm", "mlp_norm", "mlp_out_norm")
# Norms of states in a block, where they are not attention_norm and mlp_norm.
NORMS = {
    "gemma2": SANDWICHED,
    "gemma3_text": SANDWICHED,
    "olmo2": ("attention_out_norm", "mlp_out_norm"),
}
TIED = ("gemma2", "gemma3_text")  # unless config.json says otherwise


@pytest.mark.parametrize("name", VARIANTS)
def test_plan_shapes(name: str) -> None:
    """Every leaf's shape from the config's sizes, and every index of every tensor once."""
    config = VARIANTS[name]
    kind = config["model_type"]
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    layers, h = config["num_hidden_layers"], config.get("head_dim") or d // heads
    block = {
        "attention.wq": (d, heads, h),
        "attention.wk": (d, kv, h),
        "attention.wv": (d, kv, h),
        "attention.wo": (heads, h, d),
        "mlp.gate": (d, f),
        "mlp.up": (d, f),
        "mlp.down": (f, d),
    }
    block |= dict.fromkeys(NORMS.get(kind, ("attention_norm", "mlp_norm")), (d,))
    if kind in ("gemma3_text", "qwen3"):
        block |= {"attention.q_norm": (h,), "attention.k_norm": (h,)}
    if kind == "olmo2":
        block |= {"attention.q_norm": (heads, h), "attention.k_norm": (kv, h)}
    if config.get("attention_bias", kind == "qwen2"):
        block |= {"attention.bq": (heads, h), "attention.bk": (kv, h), "attention.bv": (kv, h)}
        block |= {} if kind == "qwen2" else {"attention.bo": (d,)}
    if config.get("mlp_bias"):
        block |= {"mlp.gate_bias": (f,), "mlp.up_bias": (f,), "mlp.down_bias": (d,)}
    expected = {f"blocks.{path}": (layers, *shape) for path, shape in block.items()}
    expected |= {"embed": (v, d), "final_norm": (d,)}
    if not config.get("tie_word_embeddings", kind in TIED):
        expected["head"] = (v, d)
    plan = plan_of(config)
    assert {path: leaf.shape for path, leaf in plan.items()} == expected
    taken: dict[str, list[Param]] = {}
    for leaf in plan.values():
        for tensor in leaf.names:
            taken.setdefault(tensor, []).append(leaf)
    for leaves in taken.values():
        assert len({leaf.stored_shape for leaf in leaves}) == 1
        assert sum(leaf.size // len(leaf.names) for leaf in leaves) == np.prod(leaves[0].stored_shape)
        starts = [leaf.part.start for leaf in leaves if leaf.part]
        assert len(leaves) == 1 or len(set(starts)) == len(leaves)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({**LLAMA, "rope_scaling": {**YARN, "mscale_other": 1.0}}, "rope_scaling.mscale_other (llama)"),
        ({**LLAMA, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "low": 1}}, "rope_parameters.low (llama)"),
        ({**LLAMA, "qk_layernorm": True, "clip_qkv": 8.0}, "clip_qkv, qk_layernorm (llama)"),
        ({**LLAMA, "sliding_window": 16}, "sliding_window (llama)"),
        ({**LLAMA, "quantization_config": {"quant_method": "awq"}}, "quantization_config (llama)"),
        ({**LLAMA, "rope_scaling": YARN, "rope_parameters": YARN}, "rope_parameters (llama)"),
        ({**VARIANTS["mistral"], "layer_types": []}, "layer_types (mistral)"),
        ({**qwen.QWEN2, "attention_bias": True}, "attention_bias (qwen2)"),
        ({**qwen.QWEN3, "num_experts": 8}, "num_experts (qwen3)"),
        ({**GEMMA2, "rope_local_base_freq": 1e4}, "rope_local_base_freq (gemma2)"),
        ({**PHI3, "num_local_experts": 16}, "num_local_experts (phi3)"),
        ({**OLMO2, "clip_qkv": 8.0}, "clip_qkv (olmo2)"),
        ({**GRANITE, "shared_intermediate_size": 8}, "shared_intermediate_size (granite)"),
        ({**GEMMA3, "altup_num_inputs": 4}, "altup_num_inputs (gemma3)"),
        (
            {**GEMMA3, "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0, "scale": 3}}},
            "rope_parameters.full_attention.scale (gemma3)",
        ),
        (
            {"model_type": "gemma3", "text_config": {**GEMMA3, "altup_num_inputs": 4}},
            "text_config.altup_num_inputs (gemma3)",
        ),
    ],
)
def test_a_key_that_no_code_reads_is_named(config: dict[str, Any], named: str) -> None:
    with pytest.raises(UnknownConfigKeys) as error:
        family(config).from_hf(config)
    assert str(error.value) == named


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "sets hidden_act to 'gelu'; Slipstream's llama computes 'silu' only"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        (
            {"rope_scaling": {"rope_type": "proportional"}},
            "rope type 'proportional' is not supported; there are: default",
        ),
        ({"rope_scaling": {**YARN, "partial_rotary_factor": 0.5}}, "rope_scaling.partial_rotary_factor to 0.5"),
    ],
)
def test_a_variant_that_is_not_computed_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        llama.Config.from_hf({**LLAMA, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "has no hidden_size, which llama models need"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers must be int, got '3'"),
        ({"num_attention_heads": 0}, "num_attention_heads must be at least 1, got 0"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3 key/value heads"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be bool, got 1"),
        ({"head_dim": 7}, "need an even head_dim, got 7"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object"),
        ({"rope_scaling": {"type": "linear"}}, "has no rope_scaling.factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor must be over 0, got 0"),
        (
            {"rope_scaling": {"rope_type": "factors", "factors": [1.0, 2.0]}},
            "must have a positive number for each of 4 pairs",
        ),
        ({"rope_theta": -1.0}, "rope_theta must be over 0"),
    ],
)
def test_a_damaged_config_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        llama.Config.from_hf({**LLAMA, **change})


def test_keys_that_change_nothing_are_accepted() -> None:
    notes = {
        "pretraining_tp": 2,
        "torch_dtype": "bfloat16",
        "use_cache": False,
        "id2label": {"0": "a"},
        "clip_qkv": None,
    }
    assert llama.Config.from_hf({**LLAMA, **notes}) == llama.Config.from_hf(LLAMA)


def test_both_styles_of_rotary_keys_are_the_same() -> None:
    old = llama.Config.from_hf({**LLAMA, "rope_theta": 5e5, "rope_scaling": YARN})
    new = llama.Config.from_hf({**LLAMA, "rope_theta": None, "rope_parameters": {**YARN, "rope_theta": 5e5}})
    legacy = {("type" if key == "rope_type" else key): value for key, value in YARN.items()}
    assert old == new == llama.Config.from_hf({**LLAMA, "rope_theta": 5e5, "rope_scaling": legacy})
    flat = {**GEMMA3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    nested = {key: value for key, value in GEMMA3.items() if not key.startswith("rope")} | {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
    }
    assert gemma3.Config.from_hf(flat) == gemma3.Config.from_hf(nested)


def test_llama3_scaling_as_factors() -> None:
    """GGUF gives Llama 3's scaling as a divisor for each pair: the same table."""
    scaled = llama.Config.from_hf(VARIANTS["llama-llama3"]).rope
    plain = llama.Config.from_hf(LLAMA).rope
    factors = (np.asarray(plain.frequencies) / np.asarray(scaled.frequencies)).tolist()
    again = llama.Config.from_hf({**LLAMA, "rope_scaling": {"rope_type": "factors", "factors": factors}}).rope
    assert len(set(factors)) > 2
    np.testing.assert_allclose(again.frequencies, scaled.frequencies, rtol=1e-6)


def test_longrope_takes_its_set_by_the_longest_context() -> None:
    config = VARIANTS["llama-longrope"]
    plain = np.asarray(llama.Config.from_hf(LLAMA).rope.frequencies)
    for length, factors in ((128, "long_factor"), (32, "short_factor")):
        rope = llama.Config.from_hf({**config, "max_position_embeddings": length}).rope
        np.testing.assert_allclose(rope.frequencies, plain / config["rope_scaling"][factors], rtol=1e-6)


def test_longrope_takes_its_set_by_the_longest_context_of_the_engine() -> None:
    """The magnitude stays that of the model's own longest context."""
    for name in ("llama-longrope", "phi3-gqa-longrope"):
        config = family(VARIANTS[name]).from_hf(VARIANTS[name])
        factors = VARIANTS[name]["rope_scaling"]
        short, long = within(config, 32), within(config, 33)
        assert long == config
        assert short.rope.magnitude == config.rope.magnitude > 1
        ratio = np.asarray(short.rope.frequencies) / np.asarray(long.rope.frequencies)
        np.testing.assert_allclose(ratio, np.divide(factors["long_factor"], factors["short_factor"]), rtol=1e-6)
        assert within(short, 128) == short
    for name in ("gemma3", "llama-dynamic", "qwen2-tied-mha-windows"):
        config = family(VARIANTS[name]).from_hf(VARIANTS[name])
        assert within(config, 1) == config


def test_the_longest_context() -> None:
    assert llama.Config.from_hf(LLAMA).max_position == 128
    assert llama.Config.from_hf(VARIANTS["llama-dynamic"]).max_position == 144  # 48 x 3: scaling starts past 48


def test_windows_of_mistral() -> None:
    mistral = VARIANTS["mistral"]
    absent = {key: value for key, value in mistral.items() if key != "sliding_window"}
    windows = [llama.Config.of_mistral(config).window for config in (mistral, absent, VARIANTS["mistral-no-window"])]
    assert windows == [9, 4096, None]


def windows_of(config: dict[str, Any]) -> list[int | None]:
    return [kind.window for kind in family(config).from_hf(config).kinds]


def test_windows_of_qwen() -> None:
    """Only where use_sliding_window is set, and from max_window_layers on; a list of layers goes before both."""
    for base in (qwen.QWEN2, qwen.QWEN3):
        assert windows_of(base) == [None, None, None]
        assert windows_of({**base, "use_sliding_window": True}) == [None, 9, 9]
        assert windows_of({**base, "use_sliding_window": True, "sliding_window": None}) == [None] * 3
        listed = ["sliding_attention", "full_attention", "full_attention"]
        assert windows_of({**base, "use_sliding_window": True, "layer_types": listed}) == [9, None, None]
        with pytest.raises(UnsupportedModel, match="has layers of type full_attention, not sliding_attention"):
            windows_of({**base, "layer_types": listed})
        with pytest.raises(UnsupportedModel, match="lists 1 layers, num_hidden_layers says 3"):
            windows_of({**base, "layer_types": ["full_attention"]})


def test_windows_and_caps_of_gemma2() -> None:
    assert windows_of(GEMMA2) == [7, None, 7, None, 7]
    bare = {"model_type": "gemma2"}
    c, uncapped = (family(bare).from_hf({**bare, **caps}) for caps in ({}, dict.fromkeys(CAPS)))
    assert (c.score_cap, c.logit_cap) == (50.0, 30.0)
    assert (uncapped.score_cap, uncapped.logit_cap) == (None, None)


CAPS = ("attn_logit_softcapping", "final_logit_softcapping")


def test_phi3_names_longrope_in_three_ways() -> None:
    config = VARIANTS["phi3-gqa-longrope"]
    ropes = [
        phi3.Config.from_hf({**config, "rope_scaling": {**config["rope_scaling"], "type": kind}}).rope
        for kind in ("longrope", "su", "yarn")
    ]
    assert ropes[0] == ropes[1] == ropes[2]
    assert ropes[0].magnitude > 1
    with pytest.raises(CheckpointError, match="a positive number for each of 3 pairs, got 4"):
        phi3.Config.from_hf({**config, "partial_rotary_factor": 0.75})


def test_a_part_of_a_head_is_turned_only_where_a_family_can() -> None:
    assert len(phi3.Config.from_hf({**PHI3, "partial_rotary_factor": 0.5}).rope.frequencies) == 2
    for config in (LLAMA, qwen.QWEN3, GEMMA2):
        with pytest.raises(UnsupportedModel, match="partial_rotary_factor"):
            family(config).from_hf({**config, "partial_rotary_factor": 0.5})


def test_gemma3_layers_follow_the_pattern() -> None:
    kinds = gemma3.Config.from_hf({**GEMMA3, "num_hidden_layers": 14}).kinds
    assert [i for i, kind in enumerate(kinds) if kind.window is None] == [5, 11]
    assert {kind.window for kind in kinds} == {7, None}
    every_third = gemma3.Config.from_hf({**GEMMA3, "sliding_window_pattern": 3}).kinds
    assert [i for i, kind in enumerate(every_third) if kind == Kind(kinds[5].rope)] == [2, 5]


def test_gemma3_text_part_of_a_multimodal_config() -> None:
    """The published 4B config states little more than its sizes: the rest are transformers' defaults."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "image_token_index": 262144,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 256,
        "model_type": "gemma3",
        "text_config": text,
        "vision_config": {"hidden_size": 1152},
    }
    c = family(config).from_hf(config)
    assert (c.vocab_size, c.layers, c.heads, c.kv_heads, c.head_dim, c.tied) == (262208, 34, 8, 4, 256, True)
    assert c.score_scale == 1 / 16
    assert c.kinds[5].rope.frequencies[0] == 1 / 8
    assert c.kinds[0] == Kind(c.kinds[0].rope, 1024)
    assert c.kinds[0].rope.frequencies[0] == 1
    names = {name for leaf in plan_of(config).values() for name in leaf.names}
    assert all(name.startswith("language_model.model.") for name in names)


def test_an_unknown_architecture_names_the_nearest_and_lists_all() -> None:
    with pytest.raises(UnsupportedModel) as error:
        family({"model_type": "lama", "architectures": ["LlammaForCausalLM"]})
    message = str(error.value)
    assert message.startswith(
        "LlammaForCausalLM, lama is not a model that Slipstream serves; the nearest is LlamaForCausalLM."
    )
    assert all(name in message for row in FAMILIES for name in (row.name, *row.model_types, *row.architectures))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"model_type": "llama"}, "llama"),
        ({"architectures": ["MistralForCausalLM"]}, "mistral"),
        ({"architectures": ["Phi3ForCausalLM"]}, "phi3"),
        ({"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}, "gemma3"),
    ],
)
def test_a_family_by_type_or_architecture(config: dict[str, Any], name: str) -> None:
    assert family(config).name == name


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
        {"model_type": "qwen9"},
        {"model_type": "gemma3_text", "architectures": ["LlamaForCausalLM"]},
    ],
)
def test_a_type_and_an_architecture_must_be_of_one_family(config: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match="It serves: llama"):
        family(config)


def test_a_config_that_says_nothing() -> None:
    with pytest.raises(CheckpointError, match="neither model_type nor architectures"):
        family({"hidden_size": 8})
