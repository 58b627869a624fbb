"""What families with mixtures of experts share: a layer's router and experts, their plan, and the ways to choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import Array

from slipstream.errors import CheckpointError
from slipstream.kernels.experts import Clamped, Experts, Routing, mixture
from slipstream.kernels.matmul import Activation, Around, dot
from slipstream.models.keys import Keys
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
    found = dot("td,de->te", x, w.router, replace(around, after=None, add=None), dtype=jnp.float32)
    found = found if w.router_bias is None else found + w.router_bias
    return mixture(x, w.experts, choose(found), activation, around)


@dataclass(frozen=True)
class Grouped:
    """How DeepSeek's models choose: `chosen` experts, out of the `open` best of `groups` equal groups.

    `sigmoid`: scores are that of logits, else their softmax. `best`: how many of a group's scores add up to its own.
    `normalized`: the shares are made to sum to 1. `scale`: factor on them after that.
    """

    chosen: int
    groups: int
    open: int
    best: int
    sigmoid: bool
    normalized: bool
    scale: float

    def __call__(self, found: Array, correction: Array | None = None) -> Routing:
        """By logits [t, e]. `correction` [e] is added to the scores for the choice alone, not for the shares."""
        wide = found.astype(jnp.float32)
        scores = jax.nn.sigmoid(wide) if self.sigmoid else jax.nn.softmax(wide, axis=-1)
        wanted = scores if correction is None else scores + correction
        if self.open < self.groups:
            by_group = wanted.reshape(wanted.shape[0], self.groups, -1)
            merit = jnp.sum(jax.lax.top_k(by_group, self.best)[0], axis=-1)
            taken = jax.lax.top_k(merit, self.open)[1]
            is_open = jnp.any(taken[:, :, None] == jnp.arange(self.groups), axis=1)
            wanted = jnp.where(is_open[:, :, None], by_group, -jnp.inf).reshape(wanted.shape)
        experts = jax.lax.top_k(wanted, self.chosen)[1]
        shares = jnp.take_along_axis(scores, experts, axis=-1)
        if self.normalized:
            shares = shares / (jnp.sum(shares, axis=-1, keepdims=True) + 1e-20)
        return Routing(experts, shares * self.scale, found.shape[-1])


def softmax_top_k(found: Array, *, chosen: int, normalized: bool) -> Routing:
    """The `chosen` likeliest experts by the softmax of logits [t, e]; `normalized`: their shares then sum to 1."""
    shares, experts = jax.lax.top_k(jax.nn.softmax(found.astype(jnp.float32), axis=-1), chosen)
    if normalized:
        shares = shares / jnp.sum(shares, axis=-1, keepdims=True)
    return Routing(experts, shares, found.shape[-1])
