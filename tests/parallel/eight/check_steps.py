"""What devices say to each other in a step, counted in the code that XLA makes of the engine's own steps."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

from slipstream.checkpoint.placement import Placement
from slipstream.engine.lowering import Lowering
from slipstream.engine.memory import KVShape
from slipstream.engine.shapes import Shape
from slipstream.models.registry import family
from slipstream.parallel.ahead import bytes_on_device
from slipstream.parallel.hlo import collectives
from slipstream.parallel.mesh import make_mesh
from slipstream.parallel.rules import rules_of
from slipstream.parallel.spread import heads_of
from slipstream.spec.param import map_params
from tests.parallel.eight.check_families import config_of

PAGES = 16


def lowered(name: str, tp: int, shape: Shape, **asked: bool) -> Any:
    """The step of a model for which nothing is loaded."""
    chosen = family(config_of(name))
    c = chosen.from_hf(config_of(name))
    rules, mesh = rules_of(**asked), make_mesh(jax.devices()[:tp], c.kv_heads)
    place = Placement(jax.devices()[0], np.dtype(np.float32), False, "exact", mesh, rules)
    weights = map_params(place.of_shape, chosen.plan(c))
    sizes = (c.layers, c.kv_heads, c.head_dim, 16)
    kv = KVShape(*sizes, np.dtype(np.float32), values=not chosen.latent, heads=heads_of(mesh, rules))
    return Lowering(chosen, c, kv, shape.rows, 128, "reference", mesh).step(shape, PAGES, weights)


@cache
def compiled(name: str, tp: int, shape: Shape, **asked: bool) -> Any:
    made = lowered(name, tp, shape, **asked)
    return made.function().lower(*made.arguments).compile()


@pytest.mark.parametrize("tp", [2, 8])
def test_a_dense_step_adds_up_twice_a_layer_and_once_for_the_embedding(tp: int) -> None:
    """And it gathers the logits. Nothing else is sent: attention and the sampler need no other device."""
    found = collectives(compiled("llama", tp, Shape(4, 4)).as_text())
    assert found == ({"all-reduce": 1, "all-gather": 1}, {"all-reduce": 2})


def test_experts_add_up_once() -> None:
    for experts in (False, True):
        found = collectives(compiled("mixtral", 4, Shape(4, 4), experts=experts).as_text())
        assert found == ({"all-reduce": 1, "all-gather": 1}, {"all-reduce": 2})


def test_the_cache_is_updated_in_place_on_every_device() -> None:
    made = lowered("llama", 8, Shape(4, 4))
    cache = made.arguments[1]
    analysis = compiled("llama", 8, Shape(4, 4)).memory_analysis()
    held = bytes_on_device(cache.k) + bytes_on_device(cache.v)
    assert bytes_on_device(cache.k) == cache.k.size * 4 // 2  # Two key/value heads, each on four devices.
    assert analysis.alias_size_in_bytes >= held
