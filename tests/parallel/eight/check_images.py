"""On several devices parts of image models compute what they compute on one, in float32's rounding."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

from slipstream.checkpoint.placement import Placement
from slipstream.checkpoint.quantized.rounded import RoundedSource
from slipstream.errors import ConfigError
from slipstream.kernels.sharded import Sharded
from slipstream.models.image.registry import module_of
from slipstream.parallel.fit import check_fit
from slipstream.parallel.hlo import collectives
from slipstream.parallel.mesh import make_mesh
from slipstream.parallel.rules import rules_of
from slipstream.quant.rounding import SCHEMES
from slipstream.spec.source import Source
from tests.models.image.harness import Built, FluxInputs, clip_tokens, random_source, relative
from tests.models.image.variants import CLIPS, FLUX, T5

TOLERANCE = 2e-5  # sums over devices add in another order
CONFIGS: dict[str, dict[str, Any]] = {
    "CLIPTextModelWithProjection": {**CLIPS["clip-projected"], "hidden_size": 32, "num_attention_heads": 4,
                                    "intermediate_size": 40},
    "T5EncoderModel": {**T5, "d_ff": 40},
    "FluxTransformer2DModel": FLUX,
}  # fmt: skip
"""Sizes that four devices divide; a vocabulary of 99 is filled up."""


def built(kind: str, tp: int | None, scheme: str | None = None) -> Built:
    config, module = CONFIGS[kind], module_of(kind)
    c = module.from_diffusers(config)
    plan, rules = module.plan(c), rules_of()
    source: Source = random_source(kind, config)
    if scheme is not None:
        source = RoundedSource(source, plan, SCHEMES[scheme])
    mesh = None
    if tp is not None:
        check_fit(plan, c.heads, tp, rules)
        mesh = make_mesh(jax.devices()[:tp], c.heads)
    return Built.of(
        kind, config, source, Placement(jax.devices()[0], np.dtype(np.float32), False, "exact", mesh, rules)
    )


def inputs(kind: str) -> tuple[Any, ...]:
    if kind == "FluxTransformer2DModel":
        return FluxInputs.of(FLUX, "wide").all
    return (clip_tokens(CONFIGS[kind] if kind.startswith("CLIP") else CLIPS["clip"]),)


@cache
def alone(kind: str, scheme: str | None = None) -> list[np.ndarray]:
    return jax.tree.leaves(built(kind, None, scheme)(*inputs(kind)))


@pytest.mark.parametrize("kind", CONFIGS)
def test_four_devices_are_one(kind: str) -> None:
    model = built(kind, 4)
    for found, expected in zip(jax.tree.leaves(model(*inputs(kind))), alone(kind), strict=True):
        assert relative(found, expected) < TOLERANCE


def test_int8_on_two_devices() -> None:
    kind = "FluxTransformer2DModel"
    [found], [expected] = jax.tree.leaves(built(kind, 2, "int8")(*inputs(kind))), alone(kind, "int8")
    assert relative(found, expected) < TOLERANCE


def test_nearly_all_of_flux_is_cut() -> None:
    """Whole on each device: norms, biases of states, and the products that take latents and text in and out."""
    weights = built("FluxTransformer2DModel", 4).weights
    leaves = jax.tree.leaves(weights, is_leaf=lambda node: isinstance(node, Sharded))
    arrays = [(leaf.inner if isinstance(leaf, Sharded) else leaf) for leaf in leaves]
    here = [array.addressable_shards[0].data.size / array.size for array in arrays]
    for block in (weights.double.image, weights.double.text, weights.single):
        for leaf in (block.modulation, block.q, block.k, block.v, block.up, block.out, block.down):
            assert leaf.weight.inner.addressable_shards[0].data.size * 4 == leaf.weight.inner.size
    assert set(here) == {0.25, 1.0}


def test_what_devices_tell_each_other() -> None:
    """Sums after attention and after the feed-forward, of text and of image in a double block, of which a compiler may
    make fewer; and scales and shifts, which are gathered.
    """
    model = built("FluxTransformer2DModel", 4)
    compiled = model.compiled["reference"].lower(model.weights, *inputs("FluxTransformer2DModel")).compile()
    found = collectives(compiled.as_text()).looped
    assert found.keys() == {"all-reduce", "all-gather"}
    assert found["all-reduce"] <= 4 + 2 and found["all-gather"] == 2 + 1


def test_heads_that_do_not_divide() -> None:
    with pytest.raises(
        ConfigError, match=r"--tp 8 does not fit this model: .*heads has size 4, which 8 does not divide"
    ):
        built("FluxTransformer2DModel", 8)
