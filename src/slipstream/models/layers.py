"""Equal layers without a cache as one scan: compile time does not grow with depth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from slipstream.kernels.matmul import is_leaf, layer_of

Weights = TypeVar("Weights")
Carry = TypeVar("Carry")


def run_layers(
    block: Callable[[Weights, Carry], Carry], weights: Weights, carry: Carry, count: int, *, first: int = 0
) -> Carry:
    """`block(w, carry) -> carry` for the layers from `first` to `count` of stacked `weights`, of any type of leaf."""

    def one(carry: Carry, layer: Array) -> tuple[Carry, None]:
        w: Any = jax.tree.map(partial(layer_of, index=layer), weights, is_leaf=is_leaf)
        return block(w, carry), None

    return jax.lax.scan(one, carry, jnp.arange(first, count, dtype=jnp.int32))[0]
