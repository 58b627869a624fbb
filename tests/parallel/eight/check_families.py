"""On several devices a family computes what it computes on one, in float32's rounding: check_every_size.py has all."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from slipstream.errors import ConfigError
from slipstream.models.registry import family
from tests.models.moe_variants import MOE
from tests.models.variants import VARIANTS
from tests.parallel.eight.on_mesh import ROWS, OnMesh

TOLERANCE = 2e-5  # of the largest logit: sums over devices add in another order
STEPS = 12
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2}
"""On 8 devices four have the same key/value head."""
SIZES = {
    "mixtral": {"num_local_experts": 8},
    "qwen3_moe": {"moe_intermediate_size": 24},
    "gpt_oss": {"intermediate_size": 24},
    "deepseek_v3": {"moe_intermediate_size": 16, "n_routed_experts": 16, "num_key_value_heads": 8},
}
"""What a small config has that does not divide by 8."""


def config_of(name: str) -> dict[str, Any]:
    """The family's first small config, with heads for 8 devices."""
    found = [config for config in (VARIANTS | MOE).values() if family(config).name == name]
    assert found, f"tests/models has no small config of {name}: its sharding would not be tested"
    return {**found[0], **HEADS, **SIZES.get(name, {})}


@cache
def alone(name: str) -> list[np.ndarray]:
    return greedy(OnMesh.of(config_of(name), None))


def greedy(model: OnMesh) -> list[np.ndarray]:
    return model.session().greedy([[row + 3] for row in range(ROWS)], STEPS)


def compare(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < TOLERANCE * np.abs(theirs).max()
        assert (ours.argmax(-1) == theirs.argmax(-1)).all()


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_any_number_of_devices_that_divides(tp: int) -> None:
    compare(greedy(OnMesh.of(config_of("llama"), tp)), alone("llama"))


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("experts", [False, True])
def test_whole_experts_and_tokens_on_a_device_each(experts: bool, tokens: bool) -> None:
    compare(greedy(OnMesh.of(config_of("mixtral"), 4, experts=experts, tokens=tokens)), alone("mixtral"))


def test_tokens_on_a_device_each_in_a_dense_model() -> None:
    compare(greedy(OnMesh.of(config_of("llama"), 8, tokens=True)), alone("llama"))


@pytest.mark.parametrize(("scheme", "tp"), [("int8", 8), ("int4-g32", 2)])
def test_quantized_weights_are_cut_with_their_scales(scheme: str, tp: int) -> None:
    config = {**config_of("llama"), "hidden_size": 64, "intermediate_size": 128}
    expected = greedy(OnMesh.of(config, None, scheme=scheme))
    compare(greedy(OnMesh.of(config, tp, scheme=scheme)), expected)


def test_blocks_that_devices_cannot_share() -> None:
    config = {**config_of("llama"), "hidden_size": 64, "intermediate_size": 128}
    with pytest.raises(ConfigError, match="a weight of size 8 has 2 quantized blocks, which 8 devices cannot share"):
        OnMesh.of(config, 8, scheme="int4-g32")
