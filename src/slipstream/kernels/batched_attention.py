"""Attention of a batch whose members have one length: image models' denoisers, autoencoders and text encoders.

No member is padded and nothing is cached, so this is a softmax between two products. What differs is how much of the
scores there is at a time: all of a batch's are t * c * n numbers, 2 GB for one Flux block at 1024x1024.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from slipstream.kernels.native import library
from slipstream.kernels.native.picture import attend_native
from slipstream.kernels.ragged import Kernels

MASKED = -1e30
"""A bias below every real score, yet finite."""


def attend_batch(
    q: Array, k: Array, v: Array, *, scale: float, bias: Array | None = None, kernels: Kernels = "reference"
) -> Array:
    """softmax(q k' * scale + bias) v by the implementation named: [b, t, n, h] in q's dtype, the softmax in float32.

    q: [b, t, n, h]. k, v: [b, c, n, h]. `bias` float32 [n, t, c], or [1, t, c] for all heads.
    """
    return IMPLEMENTATIONS[kernels](q, k, v, scale, bias)


def in_query_blocks(q: Array, k: Array, v: Array, scale: float, bias: Array | None, *, block: int) -> Array:
    """All heads at once, for so many queries at a time where there are more than twice as many.

    Heads may lie on several devices: nothing here moves them.
    """
    t = q.shape[1]
    if t <= 2 * block:
        return _attend(q, k, v, scale, bias)
    count = -(-t // block)

    def split(x: Array, axis: int) -> Array:
        """`x` in blocks along its axis of queries, which are the first axis of the result."""
        padded = jnp.pad(x, [(0, count * block - t if i == axis else 0) for i in range(x.ndim)])
        return jnp.moveaxis(padded.reshape(*x.shape[:axis], count, block, *x.shape[axis + 1 :]), axis, 0)

    if bias is None:
        blocks = lax.map(lambda one: _attend(one, k, v, scale, None), split(q, 1))
    else:
        blocks = lax.map(lambda one: _attend(one[0], k, v, scale, one[1]), (split(q, 1), split(bias, 1)))
    return jnp.moveaxis(blocks, 0, 1).reshape(q.shape[0], -1, *q.shape[2:])[:, :t]


def in_head_turns(
    q: Array, k: Array, v: Array, scale: float, bias: Array | None, *, block: int, fewest_keys: int
) -> Array:
    """One head of one member at a time, so that its scores stay in a processor's cache; all at once with few keys.

    Queries go in blocks where there are many.
    """
    (b, t, n, _), c = q.shape, k.shape[1]
    if c < fewest_keys:
        return _attend(q, k, v, scale, bias)

    def one(head: tuple[Array, Array, Array, Array]) -> Array:
        q, k, v, index = head
        own = None if bias is None else bias[index % bias.shape[0]][None]
        q, k, v = (x[None, :, None] for x in (q, k, v))
        return in_query_blocks(q, k, v, scale, own, block=block)[0, :, 0]

    heads = (jnp.moveaxis(x, 2, 1).reshape(b * n, x.shape[1], x.shape[3]) for x in (q, k, v))
    turns = lax.map(one, (*heads, jnp.arange(b * n, dtype=jnp.int32)))
    return jnp.moveaxis(turns.reshape(b, n, t, -1), 1, 2)


def on_cpu(q: Array, k: Array, v: Array, scale: float, bias: Array | None) -> Array:
    """By the native kernel where it is there; it knows no bias."""
    if bias is None and library.library() is not None:
        return attend_native(q, k, v, scale)
    return in_head_turns(q, k, v, scale, bias, block=1024, fewest_keys=256)


def _attend(q: Array, k: Array, v: Array, scale: float, bias: Array | None) -> Array:
    product = partial(
        jnp.einsum,
        precision=lax.Precision.HIGHEST if q.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
    scores = product("btnh,bcnh->bntc", q, k) * scale
    weights = jax.nn.softmax(scores if bias is None else scores + bias, axis=-1)
    return product("bntc,bcnh->btnh", weights.astype(v.dtype), v).astype(q.dtype)


_WIDE = partial(in_query_blocks, block=512)

IMPLEMENTATIONS: dict[Kernels, Callable[[Array, Array, Array, float, Array | None], Array]] = {
    "reference": _WIDE,
    "cpu": on_cpu,
    "pallas_tpu": _WIDE,
    "pallas_gpu": _WIDE,
    "cudnn": _WIDE,
}
