"""What families with mixtures of experts share: a layer's router and experts, their plan, and the ways to choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import Array

from slipstream.errors import CheckpointError
from slipstream.kernels.experts import Clamped, Experts, Routing, mixture
from slipstream.kernels.matmul import Activation, Around
from slipstream.models.keys import Keys
from slipstream.models.llm.blocks import linear
from slipstream.models.llm.weights import Axes, Leaf
from slipstream.spec.param import Axis, Param, param


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Moe:
    """A layer's `router` [d, e] with its bias [e], if any, and the experts that it chooses from."""

    router: Leaf
    experts: Experts
    router_bias: Leaf | None = None


def read_counts(keys: Keys, name: str, default: int, chosen: int) -> tuple[int, int]:
    """The number of experts, under the key `name`, and how many each token gets; raises CheckpointError for too many.

    `default` and `chosen`: the family's own, where config.json does not say.
    """
    count, chosen = keys.size(name, default), keys.size("num_experts_per_tok", chosen)
    if chosen > count:
        raise CheckpointError(f"config.json: num_experts_per_tok is {chosen}, but there are {count} experts ({name})")
    return count, chosen


def plan_router(axes: Axes, count: int, name: str) -> Param:
    """The plan of a router's weight. Quantizing it would change who is chosen; its axis of experts is never sharded."""
    return param(axes.D | Axis("choices", "e", count), name, "e d -> d e", contract=("embed",))


def plan_experts(axes: Axes, count: int, at: str, names: tuple[str, str, str]) -> Experts:
    """The plan of `count` experts with three tensors each: `names` of gate, up and down, {} for the expert's number."""
    D, F, *_ = axes
    E = Axis("expert", "e", count)
    gate, up, down = (at + name for name in names)
    return Experts(
        gate=param(D | F, gate, "f d -> d f", contract=("embed",), each=E),
        up=param(D | F, up, "f d -> d f", contract=("embed",), each=E),
        down=param(F | D, down, "d f -> f d", contract=("mlp",), each=E),
    )


def feed_forward_of_experts(
    w: Moe, x: Array, choose: Callable[[Array], Routing], activation: Activation | Clamped, around: Around
) -> Array:
    """The mixture of the experts that `choose` takes by the router's logits, float32 [t, e], for states `x` [t, d]."""
    h = around.before(x)
    inside = Around(real=around.real)
    found = linear("td,de->te", h.astype(jnp.float32), w.router, w.router_bias, inside)
    return mixture(h, w.experts, choose(found), activation, replace(around, norm=None))


def softmax_top_k(found: Array, *, chosen: int, normalized: bool) -> Routing:
    """The `chosen` likeliest experts by the softmax of logits [t, e]; `normalized`: their shares then sum to 1."""
    shares, experts = jax.lax.top_k(jax.nn.softmax(found.astype(jnp.float32), axis=-1), chosen)
    if normalized:
        shares = shares / jnp.sum(shares, axis=-1, keepdims=True)
    return Routing(experts, shares, found.shape[-1])
