"""Drawing tokens by the native CPU kernels, see sample.h."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def choose_native(logits: Array, count: Array, slot: Array, position: Array, wishes: Array) -> Array:
    """A token i32[s] for each of the first `count` i32[] rows of `logits` f32[s, v]; 0 for the others.

    `slot` i32[s] says which row of `wishes` i32[n, 6] is a row's: the bits of temperature, top_p and min_p (f32),
    top_k, and the two words of the seed (u32, high word first). The best logit where temperature is 0. Otherwise one
    of those that top_k (0: all), top_p and min_p leave of logits / temperature, by the noise that
    `engine.sampler.noise` makes of the seed and `position` i32[s].
    """
    call = jax.ffi.ffi_call("slipstream_ffi_sample", jax.ShapeDtypeStruct(logits.shape[:1], jnp.int32))
    tokens: Array = call(logits, count, slot, position, wishes)
    return tokens
