"""The mathematics that families share: embedding, products with a bias, feed-forward, logits, soft cap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
from jax import Array

from slipstream.kernels.matmul import ACTIVATIONS, ALONE, Activation, Around, dot, dots, gated_mlp, rows_of
from slipstream.kernels.norm import Norm
from slipstream.models.llm.weights import Attention, Leaf, Mlp, Weights

QKV = ("td,dnh->tnh", "td,dkh->tkh", "td,dkh->tkh")
"""Queries, keys and values of one input."""


def embed(tokens: Array, table: Leaf, scale: float = 1.0) -> Array:
    """Rows of `table` [v, d] for `tokens` i32[t], times `scale`: [t, d]."""
    x = rows_of(table, tokens)
    return x if scale == 1 else x * jnp.asarray(scale, x.dtype)  # Rounded to the weights' type first, as in training.


def linear(eq: str, x: Array, weight: Leaf, bias: Leaf | None, around: Around = ALONE) -> Array:
    """A product and, where there is one, its bias; the residual comes after the bias."""
    if bias is None:
        return dot(eq, x, weight, around)
    return around.finish(dot(eq, x, weight, replace(around, after=None, add=None)) + bias)


def linears(
    eqs: Sequence[str], x: Array, weights: Sequence[Leaf], biases: Sequence[Leaf | None], around: Around
) -> list[Array]:
    """Products of one input with several weights, each with its bias where it has one."""
    ys = dots(eqs, x, weights, around)
    return [y if bias is None else y + bias for y, bias in zip(ys, biases, strict=True)]


def qkv(w: Attention, x: Array, around: Around) -> list[Array]:
    """Queries [t, n, h], keys and values [t, k, h] of states `x` [t, d]."""
    return linears(QKV, x, (w.wq, w.wk, w.wv), (w.bq, w.bk, w.bv), around)


def output(w: Attention, y: Array, around: Around) -> Array:
    """The heads' results `y` [t, n, h] as states [t, d]."""
    return linear("tnh,nhd->td", y, w.wo, w.bo, around)


def feed_forward(w: Mlp, x: Array, activation: Activation, around: Around) -> Array:
    """`kernels.matmul.gated_mlp`, with biases where there are any."""
    if w.down_bias is None:
        return gated_mlp(x, w.gate, w.up, w.down, activation, around)
    before = replace(around, after=None, add=None)
    opened, y = linears(("td,df->tf",) * 2, x, (w.gate, w.up), (w.gate_bias, w.up_bias), before)
    return linear("tf,fd->td", ACTIVATIONS[activation](opened) * y, w.down, w.down_bias, replace(around, norm=None))


def logits(w: Weights, x: Array, eps: float, real: Array | None, offset: float = 0.0) -> Array:
    """Logits float32 [r, v] of states `x` [r, d], of which the first `real` i32[] are wanted (None: all).

    `eps` and `offset` are those of the final norm.
    """
    around = Around(Norm(w.final_norm, eps, offset), real=real)
    return dot("rd,vd->rv", x, w.embed if w.head is None else w.head, around, dtype=jnp.float32)


def soft_cap(x: Array, cap: float | None) -> Array:
    """cap * tanh(x / cap), or `x` where there is no cap."""
    return x if cap is None else jnp.tanh(x / cap) * cap
