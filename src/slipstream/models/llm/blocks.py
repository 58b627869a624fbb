"""The mathematics that families share: embedding, products with a bias, soft cap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from slipstream.kernels.matmul import dot, dots, rows_of
from slipstream.kernels.ragged import Step

Leaf = Any
"""A weight: a `Param` in a plan, an array (or a quantized leaf) in the weights."""

QKV = ("td,dnh->tnh", "td,dkh->tkh", "td,dkh->tkh")
"""Queries, keys and values of one input."""


def embed(tokens: Array, table: Leaf) -> Array:
    """Rows of `table` [v, d] for `tokens` i32[t]: [t, d]."""
    return rows_of(table, tokens)


def linear(eq: str, x: Array, weight: Leaf, bias: Leaf | None, step: Step) -> Array:
    """A product over the step's real tokens and, where there is one, its bias."""
    return _with_bias(dot(eq, x, weight, real=step.real), bias)


def linears(
    eqs: Sequence[str], x: Array, weights: Sequence[Leaf], biases: Sequence[Leaf | None], step: Step
) -> list[Array]:
    """`linear` of one input with several weights."""
    ys = dots(eqs, x, weights, real=step.real)
    return [_with_bias(y, bias) for y, bias in zip(ys, biases, strict=True)]


def _with_bias(y: Array, bias: Leaf | None) -> Array:
    return y if bias is None else y + bias


def soft_cap(x: Array, cap: float | None) -> Array:
    """cap * tanh(x / cap), or `x` where there is no cap."""
    return x if cap is None else jnp.tanh(x / cap) * cap
