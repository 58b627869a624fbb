"""Drawing tokens by the native CPU kernels, see sample.h."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def choose_native(
    logits: Array, count: Array, temperature: Array, top_k: Array, top_p: Array, min_p: Array, key: Array
) -> Array:
    """A token i32[s] for each of the first `count` i32[] rows of `logits` f32[s, v]; 0 for the others.

    The best logit where `temperature` f32[s] is 0. Otherwise one of those that `top_k` i32[s] (0: all), `top_p` and
    `min_p` f32[s] leave of logits / temperature, by noise from `key` u32[s, 2], as `engine.sampler.noise` makes it.
    """
    call = jax.ffi.ffi_call("slipstream_ffi_sample", jax.ShapeDtypeStruct(logits.shape[:1], jnp.int32))
    tokens: Array = call(logits, count, temperature, top_p, min_p, top_k, key)
    return tokens
