"""Drawing tokens by the native CPU kernels, see sample.h."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def choose_native(
    logits: Array,
    count: Array,
    slot: Array,
    position: Array,
    *,
    temperature: Array,
    top_k: Array,
    top_p: Array,
    min_p: Array,
    seed: Array,
) -> Array:
    """A token i32[s] for each of the first `count` i32[] rows of `logits` f32[s, v]; 0 for the others.

    `slot` i32[s] says which of the wishes, n each, are a row's: the best logit where `temperature` f32[n] is 0.
    Otherwise one of those that `top_k` i32[n] (0: all), `top_p` and `min_p` f32[n] leave of logits / temperature, by
    the noise that `engine.sampler.noise` makes of `seed` u32[n, 2] and `position` i32[s].
    """
    call = jax.ffi.ffi_call("slipstream_ffi_sample", jax.ShapeDtypeStruct(logits.shape[:1], jnp.int32))
    tokens: Array = call(logits, count, slot, position, temperature, top_p, min_p, top_k, seed)
    return tokens
