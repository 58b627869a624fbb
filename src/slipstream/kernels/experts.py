"""Mixtures of experts: every token through the few feed-forwards that a router chose for it, and none is ever dropped.

The choices of a step are sorted by expert, so that those of one expert lie together. Then an expert is a product over a
run of rows whose length is known only at run time. Two implementations:

- `ragged`: `lax.ragged_dot`, which TPUs and GPUs have an instruction or a library's kernel for.
- `in_blocks`: a loop over blocks of rows of one expert each, whose trip count follows the choices that there are. It
  takes one expert out of a stack by `layer_of` and multiplies by `gated_mlp`, so it serves any leaf type that has rules
  for those two: native and quantized leaves too. On a CPU it serves arrays as well, where XLA computes a ragged product
  as one over all experts: 5 to 25 times slower for 2 to 2048 choices among 32 experts.

A leaf type with a kernel of its own registers it with `routed`.

Source: Shazeer et al. 2017 (arXiv:1701.06538); sorting instead of a capacity: Gale et al. 2022 (arXiv:2211.15841).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial, singledispatch
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from slipstream.kernels.matmul import ACTIVATIONS, ALONE, Activation, Around, dot, dots, gated_mlp, is_leaf, layer_of
from slipstream.kernels.norm import Norm

# Rows of one block, at least and at most. XLA's CPU products of 2 to 32 rows give a row the same bits; others do not.
ARRAY_BLOCK = (2, 32)
LEAF_BLOCK = (2, 256)


@dataclass(frozen=True)
class Clamped:
    """gpt-oss's gated activation: gate * sigmoid(alpha * gate) * (up + 1), where gate and |up| are at most `limit`."""

    alpha: float
    limit: float

    def __call__(self, gate: Array, up: Array) -> Array:
        """Both halves [..., f] to one."""
        gate, up = jnp.minimum(gate, self.limit), jnp.clip(up, -self.limit, self.limit)
        return gate * jax.nn.sigmoid(self.alpha * gate) * (up + 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Experts:
    """The weights of e gated feed-forwards: `gate` and `up` [e, d, f], `down` [e, f, d].

    `gate_bias` and `up_bias` [e, f], `down_bias` [e, d]: all three or none. In a plan the axis e has the role "expert".
    """

    gate: Any
    up: Any
    down: Any
    gate_bias: Any | None = None
    up_bias: Any | None = None
    down_bias: Any | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Routing:
    """What a router chose of `count` experts: `experts` i32[t, j], j different ones for each token, and their `shares`
    float32 [t, j].
    """

    experts: Array
    shares: Array
    count: int = field(metadata={"static": True})


class Groups(NamedTuple):
    """The choices of a step, sorted by expert; those of padding come last and belong to none.

    `tokens` i32[m]: whose choice each is. `experts` i32[m]: for which expert (e: none). `starts` i32[e + 1]: where each
    expert's choices begin, and where they all end. `places` i32[t, j]: where each choice went.
    """

    tokens: Array
    experts: Array
    starts: Array
    places: Array

    def of(self, first: Array, count: int) -> Groups:
        """Those of `count` experts from number `first` i32[] on, which come first; all others belong to none."""
        own = lax.dynamic_slice_in_dim(self.starts, first, count + 1)
        rows = self.tokens.shape[0]
        experts = jnp.roll(self.experts, -own[0]) - first
        experts = jnp.where((experts >= 0) & (experts < count), experts, count)
        return Groups(jnp.roll(self.tokens, -own[0]), experts, own - own[0], (self.places - own[0]) % rows)


def mixture(x: Array, w: Experts, routing: Routing, activation: Activation | Clamped, around: Around = ALONE) -> Array:
    """The shares' sum of the chosen experts' outputs, for x [t, d]: [t, d] in x's type.

    An expert is down(activation(gate(x)) * up(x)), or `Clamped`'s combination of gate and up. Tokens after the first
    `around.real` are padding: they are given to no expert. Sums over experts are float32, in the order of `routing`.
    """
    groups = grouped(routing, around.real)
    y = mixed.dispatch(type(w.gate))(w.gate, x, w, groups, routing.shares, activation, around.norm)
    return around.finish(y.astype(x.dtype))


@singledispatch
def mixed(
    gate: Any,
    x: Array,
    w: Experts,
    groups: Groups,
    shares: Array,
    activation: Activation | Clamped,
    norm: Norm | None,
) -> Array:
    """The rule of `mixture` for weights of one leaf type: the sums float32 [t, d]. Choices of no expert add nothing."""
    y = routed.dispatch(type(gate))(gate, x, w, groups, activation, norm)
    taken = jnp.where((groups.places < groups.starts[-1])[..., None], y[groups.places].astype(jnp.float32), 0.0)
    total = taken[:, 0] * shares[:, :1]
    for j in range(1, shares.shape[1]):
        total += taken[:, j] * shares[:, j : j + 1]
    return total


def grouped(routing: Routing, real: Array | None) -> Groups:
    """The choices, sorted; those of tokens past `real` are given to no expert."""
    experts, count = routing.experts, routing.count
    tokens, chosen = experts.shape
    if real is not None:
        experts = jnp.where(jnp.arange(tokens)[:, None] < real, experts, count)
    flat = experts.ravel().astype(jnp.int32)
    order = jnp.argsort(flat, stable=True).astype(jnp.int32)
    places = jnp.zeros_like(order).at[order].set(jnp.arange(tokens * chosen, dtype=jnp.int32))
    starts = jnp.sum(flat[:, None] < jnp.arange(count + 1), axis=0, dtype=jnp.int32)
    return Groups(order // chosen, flat[order], starts, places.reshape(tokens, chosen))


@singledispatch
def routed(
    gate: Any, x: Array, w: Experts, groups: Groups, activation: Activation | Clamped, norm: Norm | None
) -> Array:
    """The rule of `mixed` for weights of one leaf type: outputs [m, d] of the sorted choices of x [t, d], normed.

    Rows of choices that belong to no expert may hold anything. This one serves every type.
    """
    if is_leaf(gate):
        # The norm is left to the products: XLA's does not give a row the same bits among few rows and many.
        return in_blocks(x, w, groups, activation, LEAF_BLOCK, norm)
    x = x if norm is None else norm(x)
    on_cpu = partial(in_blocks, activation=activation, block=ARRAY_BLOCK)
    computed: Array = lax.platform_dependent(x, w, groups, cpu=on_cpu, default=partial(ragged, activation=activation))
    return computed


def ragged(x: Array, w: Experts, groups: Groups, activation: Activation | Clamped) -> Array:
    """Outputs [m, d] of the sorted choices, by three ragged products of arrays."""
    sizes = groups.starts[1:] - groups.starts[:-1]
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    expert = jnp.minimum(groups.experts, sizes.shape[0] - 1)

    def product(rows: Array, weight: Array, bias: Array | None) -> Array:
        y = lax.ragged_dot(rows, weight, sizes, precision=precision, preferred_element_type=jnp.float32)
        return y.astype(x.dtype) if bias is None else (y + bias[expert]).astype(x.dtype)

    rows = x[groups.tokens]
    opened, other = product(rows, w.gate, w.gate_bias), product(rows, w.up, w.up_bias)
    return product(_combined(activation, opened, other), w.down, w.down_bias)


def in_blocks(
    x: Array,
    w: Experts,
    groups: Groups,
    activation: Activation | Clamped,
    block: tuple[int, int],
    norm: Norm | None = None,
) -> Array:
    """Outputs [m, d] of the sorted choices, a block of rows of one expert after the other.

    A block has as many rows as an expert has choices on average, within `block`: what is empty is computed in vain.
    """
    count, experts = groups.tokens.shape[0], groups.starts.shape[0] - 1
    size = min(max(1 << (-(-count // experts) - 1).bit_length(), block[0]), block[1])
    starts, ends = groups.starts[:-1], groups.starts[1:]
    blocks_of = -(-(ends - starts) // size)
    last = jnp.cumsum(blocks_of)
    rows = jnp.pad(x[groups.tokens], ((0, size), (0, 0)))  # the last block may reach past the last choice

    def one(i: Array, out: Array) -> Array:
        expert = jnp.sum(last <= i, dtype=jnp.int32)
        first = starts[expert] + (i - (last[expert] - blocks_of[expert])) * size
        own = jax.tree.map(partial(layer_of, index=expert), w, is_leaf=is_leaf)
        taken = lax.dynamic_slice_in_dim(rows, first, size)
        around = Around(norm=norm, real=jnp.minimum(size, ends[expert] - first))
        y = _feed_forward(taken, own, activation, around)
        # Rows past the expert's last are of no meaning: the next block overwrites them.
        return lax.dynamic_update_slice_in_dim(out, y, first, axis=0)

    return lax.fori_loop(0, last[-1], one, jnp.zeros_like(rows))[:count]


def _feed_forward(x: Array, w: Experts, activation: Activation | Clamped, around: Around) -> Array:
    """One expert: x [r, d] -> [r, d]."""
    if w.gate_bias is None and not isinstance(activation, Clamped):
        return gated_mlp(x, w.gate, w.up, w.down, activation, around)
    opened, other = dots(("td,df->tf",) * 2, x, (w.gate, w.up), around)
    hidden = _combined(activation, _biased(opened, w.gate_bias), _biased(other, w.up_bias))
    return _biased(dot("tf,fd->td", hidden, w.down, replace(around, norm=None)), w.down_bias)


def _biased(y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + bias


def _combined(activation: Activation | Clamped, opened: Array, other: Array) -> Array:
    return activation(opened, other) if isinstance(activation, Clamped) else ACTIVATIONS[activation](opened) * other
