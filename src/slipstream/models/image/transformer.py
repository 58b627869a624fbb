"""The transformer between the residual blocks of a UNet: a picture's points attend to one another and to a text."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jax import Array

from slipstream.kernels.batched_attention import attend_batch
from slipstream.kernels.ragged import Kernels
from slipstream.models.image.blocks import Linear, linear, linears, normed, opened, plan_layer_norm, plan_linear
from slipstream.models.image.residual import Norms, plan_pointwise
from slipstream.models.layers import run_layers
from slipstream.spec.param import Axis, Part, stacked

GROUP_EPS, LAYER_EPS = 1e-6, 1e-5
"""Of the norm around all layers, and of those within one."""

WIDER = 4
"""How many times as wide the feed-forward is."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a transformer. `text`: of a text's states. `linear`: it is entered and left by products as such, not
    stored as convolutions of one point.
    """

    width: int
    heads: int
    text: int
    linear: bool
    groups: int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Attention:
    """Queries, keys, values and the way back."""

    q: Linear
    k: Linear
    v: Linear
    out: Linear


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Block:
    """One layer: attention among the picture's points, attention to the text, a gated feed-forward."""

    own_norm: Linear
    own: Attention
    text_norm: Linear
    text: Attention
    mlp_norm: Linear
    up: Linear
    gate: Linear
    down: Linear


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Transformer:
    """A stack of layers, with a leading axis in `blocks`, and what is around it."""

    norm: Linear
    enter: Linear
    blocks: Block
    leave: Linear


def plan_transformer(at: str, c: Shape, depth: int) -> Transformer:
    """The plan of a transformer of `depth` layers, under diffusers' names, which begin with `at`."""
    P, D, C = Axis("points", "p", c.width), Axis("embed", "d", c.width), Axis("text", "c", c.text)
    N, H = Axis("heads", "n", c.heads), Axis("head", "h", c.width // c.heads)
    F = Axis("mlp", "f", WIDER * c.width)

    def attention(at: str, keys: Axis) -> Attention:
        return Attention(
            q=plan_linear(D, N | H, at + "to_q", bias=False),
            k=plan_linear(keys, N | H, at + "to_k", bias=False),
            v=plan_linear(keys, N | H, at + "to_v", bias=False),
            out=plan_linear(N | H, D, at + "to_out.0"),
        )

    def block(at: str) -> Block:
        opened = at + "ff.net.0.proj"  # both halves in one tensor
        return Block(
            own_norm=plan_layer_norm(D, at + "norm1"),
            own=attention(at + "attn1.", D),
            text_norm=plan_layer_norm(D, at + "norm2"),
            text=attention(at + "attn2.", C),
            mlp_norm=plan_layer_norm(D, at + "norm3"),
            up=plan_linear(D, F, opened, part=Part("f", 0, 2 * F.size)),
            gate=plan_linear(D, F, opened, part=Part("f", F.size, 2 * F.size)),
            down=plan_linear(F, D, at + "ff.net.2"),
        )

    entry = plan_linear if c.linear else plan_pointwise
    return Transformer(
        norm=plan_layer_norm(P, at + "norm"),
        enter=entry(P, D, at + "proj_in"),
        blocks=stacked(depth, block, at + "transformer_blocks.{}."),
        leave=entry(D, P, at + "proj_out"),
    )


def transform(w: Transformer, c: Shape, depth: int, x: Array, text: Array, kernels: Kernels) -> Array:
    """`x` [b, y, x, c] after all `depth` layers, which also see `text` [b, tokens, text]; the input is added."""
    b, *size, width = x.shape
    y = Norms(c.groups, GROUP_EPS)(x, w.norm, kernels).reshape(b, -1, width)
    y = linear("tp,pd->td", y, w.enter)
    y = run_layers(lambda w, y: _layer(w, y, text, kernels), w.blocks, y, depth)
    return x + linear("td,dp->tp", y, w.leave).reshape(b, *size, width)


def _layer(w: Block, x: Array, text: Array, kernels: Kernels) -> Array:
    """`x` [b, t, d], a token for each point of a picture."""
    h = normed(w.own_norm, x, LAYER_EPS)
    q, k, v = linears(("td,dnh->tnh",) * 3, h, (w.own.q, w.own.k, w.own.v))
    x = x + _attend(w.own.out, q, k, v, kernels)
    q = linear("td,dnh->tnh", normed(w.text_norm, x, LAYER_EPS), w.text.q)
    k, v = linears(("tc,cnh->tnh",) * 2, text, (w.text.k, w.text.v))
    x = x + _attend(w.text.out, q, k, v, kernels)
    y = opened(normed(w.mlp_norm, x, LAYER_EPS), w.gate, kernels, tanh=False, times=w.up)
    return x + linear("tf,fd->td", y, w.down)


def _attend(out: Linear, q: Array, k: Array, v: Array, kernels: Kernels) -> Array:
    """What heads [b, t, n, h] add to the states [b, t, d]."""
    y = attend_batch(q, k, v, scale=q.shape[-1] ** -0.5, kernels=kernels)
    return linear("tnh,nhd->td", y, out)
