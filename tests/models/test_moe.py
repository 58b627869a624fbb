"""Families with mixtures of experts: recorded numbers of transformers, plans, published configs, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slipstream.errors import CheckpointError, UnknownConfigKeys, UnsupportedModel
from slipstream.models.registry import family
from slipstream.spec.param import Param, params
from tests.models.harness import Model, difference, prompt_of
from tests.models.moe_variants import DEEPSEEK3, GPT_OSS, MIXTRAL, MOE, QWEN3
from tests.models.published import PUBLISHED

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "models" / "moe.npz")
PROMPT, NEW = 41, 64
POSITIONS = [0, 20, 40]
# One that has most of what a family can have. All run in tests/parity.
WHOLE = (
    "mixtral-tied-window",
    "qwen3-moe-biased-window-yarn",
    "qwen3-moe-some-dense",
    "gpt-oss",
    "deepseek-v3",
    "deepseek-v2-groups",
)


@pytest.mark.parametrize("name", WHOLE)
def test_logits_and_greedy_tokens(name: str) -> None:
    model = Model.random(MOE[name])
    prompt = prompt_of(model.config.vocab_size, PROMPT)
    logits = model.session([PROMPT + NEW], PROMPT).step(prompt)[0]
    assert difference(logits[POSITIONS], GOLDEN[f"{name}/logits"]) < 1e-4
    greedy = model.session([PROMPT + NEW], PROMPT).greedy(prompt, NEW)
    assert greedy == GOLDEN[f"{name}/greedy"].tolist()


def plan_of(config: dict[str, Any]) -> dict[str, Param]:
    chosen = family(config)
    return dict(params(chosen.plan(chosen.from_hf(config))))


@pytest.mark.parametrize("name", MOE)
def test_experts_have_an_axis_of_their_own(name: str) -> None:
    """Placements find it by its role, right after that of the layers."""
    leaves = {path: leaf for path, leaf in plan_of(MOE[name]).items() if ".experts." in path}
    assert leaves
    count = next(MOE[name][key] for key in ("num_local_experts", "num_experts", "n_routed_experts") if key in MOE[name])
    for leaf in leaves.values():
        assert leaf.axes[0].role == "expert"
        assert leaf.shape[1] == leaf.axes[0].size == count


def test_layers_without_experts() -> None:
    """Those that are listed, or all but every second; each form has a stack of its own, in the layers' order."""
    plan = plan_of(MOE["qwen3-moe-some-dense"])
    dense, sparse = plan["blocks.dense.mlp.up"], plan["blocks.sparse.moe.router"]
    assert dense.names == tuple(f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 3))
    assert dense.shape == (2, 32, 64)
    assert sparse.names == tuple(f"model.layers.{i}.mlp.gate.weight" for i in (1, 2, 4))
    second = plan_of(MOE["qwen3-moe-every-second"])
    assert second["blocks.sparse.moe.router"].names == (
        "model.layers.1.mlp.gate.weight",
        "model.layers.3.mlp.gate.weight",
    )
    assert second["blocks.dense.attention.wq"].layers == 3
    bare = {**QWEN3, "mlp_only_layers": [0, 1, 2]}
    assert not any("sparse" in path for path in plan_of(bare))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read(name: str) -> None:
    """Every key of a real config.json is known, and every weight of its checkpoint is in the plan."""
    published = PUBLISHED[name]
    plan = plan_of(published.config)
    assert round(sum(leaf.size for leaf in plan.values()) / 1e9, 1) == published.billions
    names = {tensor for leaf in plan.values() for tensor in leaf.names}
    assert names >= set(published.tensors)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({**MIXTRAL, "clip_qkv": 8.0}, UnknownConfigKeys, r"clip_qkv \(mixtral\)"),
        ({**MIXTRAL, "hidden_act": "gelu"}, UnsupportedModel, "hidden_act to 'gelu'"),
        (
            {**MIXTRAL, "num_experts_per_tok": 7},
            CheckpointError,
            r"is 7, but there are 6 experts \(num_local_experts\)",
        ),
        ({**QWEN3, "shared_expert_intermediate_size": 8}, UnsupportedModel, "shared_expert_intermediate_size to 8"),
        ({**QWEN3, "mlp_only_layers": 1}, CheckpointError, "mlp_only_layers must be a list of whole numbers, got 1"),
        ({**QWEN3, "decoder_sparse_step": 0}, CheckpointError, "decoder_sparse_step must be at least 1, got 0"),
        ({**GPT_OSS, "layer_types": ["linear_attention"] * 4}, UnsupportedModel, "not linear_attention"),
        ({**GPT_OSS, "layer_types": ["full_attention"]}, UnsupportedModel, "lists 1 layers, num_hidden_layers says 4"),
        ({**GPT_OSS, "swiglu_beta": 1.0}, UnknownConfigKeys, r"swiglu_beta \(gpt_oss\)"),
        ({**DEEPSEEK3, "topk_method": "best"}, UnsupportedModel, "not by best of sigmoid"),
        ({**DEEPSEEK3, "moe_layer_freq": 2}, UnsupportedModel, "moe_layer_freq to 2"),
        ({**DEEPSEEK3, "n_group": 5}, CheckpointError, r"from 2 \(topk_group\) of 5 groups \(n_group\)"),
        ({**DEEPSEEK3, "index_topk": 2048}, UnknownConfigKeys, r"index_topk \(deepseek_v3\)"),
    ],
)
def test_what_is_not_computed_is_refused(config: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        family(config).from_hf(config)
