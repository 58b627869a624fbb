"""The weights that most families have, with their plans.

The plans give the names that Hugging Face's checkpoints use almost everywhere. A family whose checkpoints have others
makes the same dataclasses with Params of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax

from slipstream.spec.param import Axis, Init, Param, param

Leaf = Any
"""A weight: a `Param` in a plan, an array (or a quantized leaf) in the weights."""


class Sizes(Protocol):
    """What `Axes.of` reads of a family's config."""

    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def hidden(self) -> int: ...  # noqa: D102
    @property
    def vocab_size(self) -> int: ...  # noqa: D102
    @property
    def heads(self) -> int: ...  # noqa: D102
    @property
    def kv_heads(self) -> int: ...  # noqa: D102
    @property
    def head_dim(self) -> int: ...  # noqa: D102


class Axes(NamedTuple):
    """The axes of a decoder's weights, to be unpacked: `D, F, V, N, K, H = Axes.of(c)`."""

    D: Axis
    F: Axis
    V: Axis
    N: Axis
    K: Axis
    H: Axis

    @classmethod
    def of(cls, c: Sizes) -> Axes:
        """From a family's config."""
        return cls(
            D=Axis("embed", "d", c.width),
            F=Axis("mlp", "f", c.hidden),
            V=Axis("vocab", "v", c.vocab_size),
            N=Axis("heads", "n", c.heads),
            K=Axis("kv_heads", "k", c.kv_heads),
            H=Axis("head", "h", c.head_dim),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Attention:
    """Queries, keys and values of a layer, and the way back. A bias or a norm that the model does not have is None."""

    wq: Leaf
    wk: Leaf
    wv: Leaf
    wo: Leaf
    bq: Leaf | None = None
    bk: Leaf | None = None
    bv: Leaf | None = None
    bo: Leaf | None = None
    q_norm: Leaf = None
    k_norm: Leaf = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mlp:
    """A gated feed-forward."""

    gate: Leaf
    up: Leaf
    down: Leaf
    gate_bias: Leaf | None = None
    up_bias: Leaf | None = None
    down_bias: Leaf | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weights:
    """All weights of a model. `blocks` are the family's own; `head` is None where the embedding is the output layer."""

    embed: Leaf
    blocks: Any
    final_norm: Leaf
    head: Leaf | None


def plan_attention(
    axes: Axes, at: str, *, bias: bool = False, out_bias: bool = False, head_norms: Init | None = None
) -> Attention:
    """The plan of a layer's attention, whose names begin with `at`.

    `bias`: of queries, keys and values. `head_norms`: how the norms of each head of queries and keys begin, if any.
    """
    D, _, _, N, K, H = axes
    normed = head_norms is not None
    return Attention(
        wq=param(D | N | H, at + "q_proj.weight", "(n h) d -> d n h", contract=("embed",)),
        wk=param(D | K | H, at + "k_proj.weight", "(k h) d -> d k h", contract=("embed",)),
        wv=param(D | K | H, at + "v_proj.weight", "(k h) d -> d k h", contract=("embed",)),
        wo=param(N | H | D, at + "o_proj.weight", "d (n h) -> n h d", contract=("heads", "head")),
        bq=param(N | H, at + "q_proj.bias", "(n h) -> n h") if bias else None,
        bk=param(K | H, at + "k_proj.bias", "(k h) -> k h") if bias else None,
        bv=param(K | H, at + "v_proj.bias", "(k h) -> k h") if bias else None,
        bo=param(D, at + "o_proj.bias") if out_bias else None,
        q_norm=param(H, at + "q_norm.weight", init=head_norms or "ones") if normed else None,
        k_norm=param(H, at + "k_norm.weight", init=head_norms or "ones") if normed else None,
    )


def plan_mlp(axes: Axes, at: str, *, bias: bool = False) -> Mlp:
    """The plan of a layer's feed-forward, whose names begin with `at`."""
    D, F, *_ = axes
    return Mlp(
        gate=param(D | F, at + "gate_proj.weight", "f d -> d f", contract=("embed",)),
        up=param(D | F, at + "up_proj.weight", "f d -> d f", contract=("embed",)),
        down=param(F | D, at + "down_proj.weight", "d f -> f d", contract=("mlp",)),
        gate_bias=param(F, at + "gate_proj.bias") if bias else None,
        up_bias=param(F, at + "up_proj.bias") if bias else None,
        down_bias=param(D, at + "down_proj.bias") if bias else None,
    )


def plan_norm(axes: Axes, name: str, init: Init = "ones") -> Param:
    """The plan of a norm of states."""
    return param(axes.D, name + ".weight", init=init)


def plan_model(axes: Axes, blocks: Any, *, tied: bool, norms: Init = "ones", prefix: str = "") -> Weights:
    """The plan of a whole model around its blocks; `prefix` is that of all names."""
    D, _, V, *_ = axes
    return Weights(
        embed=param(V | D, prefix + "model.embed_tokens.weight", contract=("embed",)),
        blocks=blocks,
        final_norm=plan_norm(axes, prefix + "model.norm", norms),
        head=None if tied else param(V | D, prefix + "lm_head.weight", contract=("embed",)),
    )
