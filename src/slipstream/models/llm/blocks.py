"""The mathematics that families share: embedding, products with a bias, soft cap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jax import Array

from slipstream.kernels.matmul import ALONE, Around, dot, dots, rows_of

Leaf = Any
"""A weight: a `Param` in a plan, an array (or a quantized leaf) in the weights."""

QKV = ("td,dnh->tnh", "td,dkh->tkh", "td,dkh->tkh")
"""Queries, keys and values of one input."""


def embed(tokens: Array, table: Leaf) -> Array:
    """Rows of `table` [v, d] for `tokens` i32[t]: [t, d]."""
    return rows_of(table, tokens)


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


def soft_cap(x: Array, cap: float | None) -> Array:
    """cap * tanh(x / cap), or `x` where there is no cap."""
    return x if cap is None else jnp.tanh(x / cap) * cap
