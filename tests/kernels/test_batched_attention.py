"""Attention of a batch: every implementation against a plain softmax in float64."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slipstream.kernels.batched_attention import IMPLEMENTATIONS, MASKED, attend_batch, in_head_turns, in_query_blocks


def expected(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, bias: np.ndarray | None) -> np.ndarray:
    scores = np.einsum("btnh,bcnh->bntc", q, k, dtype=np.float64) * scale + (0 if bias is None else bias)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bntc,bcnh->btnh", weights / weights.sum(-1, keepdims=True), v)


def inputs(t: int, c: int, n: int = 3, h: int = 8) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(t)
    return tuple(random.standard_normal((2, size, n, h)).astype(np.float32) for size in (t, c, c))


BLOCKS = {
    "query blocks": partial(in_query_blocks, block=8),
    "head turns": partial(in_head_turns, block=8, fewest_keys=0),
    "few keys": partial(in_head_turns, block=8, fewest_keys=1000),
}


@pytest.mark.parametrize("heads", [None, 1, 3])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name: str, heads: int | None) -> None:
    """Whole blocks of queries, a last one that is not full, and fewer than two; a bias for each head or for all."""
    for t, c in ((16, 5), (24, 24), (21, 40)):
        q, k, v = inputs(t, c)
        bias = None if heads is None else np.random.default_rng(9).standard_normal((heads, t, c)).astype(np.float32)
        given = None if bias is None else jnp.asarray(bias)
        found = jax.jit(BLOCKS[name], static_argnums=3)(q, k, v, 0.3, given)
        np.testing.assert_allclose(np.asarray(found), expected(q, k, v, 0.3, bias), atol=2e-6)


def test_what_is_masked_counts_nothing() -> None:
    q, k, v = inputs(9, 9)
    bias = np.where(np.tri(9, dtype=bool), 0, MASKED).astype(np.float32)[None]
    for kernels in IMPLEMENTATIONS:
        found = np.asarray(
            attend_batch(*map(jnp.asarray, (q, k, v)), scale=0.5, bias=jnp.asarray(bias), kernels=kernels)
        )
        np.testing.assert_allclose(found, expected(q, k, v, 0.5, bias), atol=2e-6)
        np.testing.assert_allclose(found[:, 0], v[:, 0], atol=1e-6)


def test_bfloat16_sums_in_float32() -> None:
    q, k, v = inputs(20, 300)
    narrow = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    found = attend_batch(*narrow, scale=0.3)
    assert found.dtype == jnp.bfloat16
    wide = [np.asarray(x, np.float32) for x in narrow]
    np.testing.assert_allclose(np.asarray(found, np.float32), expected(*wide, 0.3, None), atol=0.01)
