"""Native attention as XLA calls it: in place, inside a scan over layers, equal to the reference implementation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slipstream.kernels.attention import attend
from slipstream.kernels.native.library import library
from slipstream.kernels.norm import Norm
from slipstream.kernels.ragged import Kernels, KVCache, Layout, Step

assert library() is not None, "build the native library first (see CONTRIBUTING.md)"

LAYERS, PAGES, PAGE, HEADS, KV_HEADS, SIZE = 3, 24, 16, 9, 3, 64
SHAPES = {
    "by_token": ((PAGE, KV_HEADS, SIZE), (PAGE, KV_HEADS, SIZE)),
    "by_head": ((KV_HEADS, SIZE, PAGE), (KV_HEADS, PAGE, SIZE)),
}
ROWS = [(70, 1), (90, 40), (5, 5)]  # (length, count)
TOKENS = 50
EPS, OFFSET = 1e-3, 1.0


def step() -> Step:
    starts = np.cumsum([0, *(count for _, count in ROWS), 0]).astype(np.int32)
    lengths = np.array([*(length for length, _ in ROWS), 0], np.int32)
    pages = np.random.default_rng(0).permutation(PAGES)[: 4 * 6].reshape(4, 6).astype(np.int32)
    return Step.of(jnp.asarray(starts), jnp.asarray(lengths), jnp.asarray(pages), TOKENS)


def native(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: tuple[jax.Array, jax.Array],
    layer: jax.Array,
    step: Step,
    angles: tuple[jax.Array, jax.Array],
    norms: tuple[jax.Array, jax.Array],
    layout: str = "by_head",
    aliases: dict[int, int] | None = None,
    sinks: jax.Array | None = None,
    **attributes: object,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    results = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, *cache))
    call = jax.ffi.ffi_call(
        "slipstream_ffi_attend", results, input_output_aliases={3: 1, 4: 2} if aliases is None else aliases
    )
    settings = {"scale": np.float32(0.125), "window": np.int64(0), "soft_cap": np.float32(0), "layout": layout}
    settings |= {f"{x}_norm_{part}": np.float32(at) for x in "qk" for part, at in (("eps", EPS), ("offset", OFFSET))}
    where = step.starts, step.lengths, step.pages
    out, *new = call(
        q,
        k,
        v,
        *cache,
        layer,
        *where,
        *angles,
        *norms,
        jnp.zeros(0) if sinks is None else sinks,
        **(settings | attributes),
    )
    return out, (new[0], new[1])


def inputs(seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    return tuple(
        jnp.asarray(rng.normal(size=(LAYERS, TOKENS, heads, SIZE)).astype(np.float32))
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )


def by_head(k: np.ndarray, v: np.ndarray) -> tuple[jax.Array, jax.Array]:
    return jnp.asarray(k.transpose(0, 1, 3, 4, 2)), jnp.asarray(v.transpose(0, 1, 3, 2, 4))


@pytest.mark.parametrize(
    ("layout", "kind", "window", "cap", "norm"),
    [
        ("by_head", jnp.float16, None, None, False),
        ("by_head", jnp.float32, 33, 5.0, True),
        ("by_token", jnp.bfloat16, None, None, False),
        ("by_token", jnp.float32, 33, 5.0, True),
    ],
)
def test_a_scan_over_layers_equals_the_reference(
    layout: str, kind: jnp.dtype, window: int | None, cap: float | None, norm: bool
) -> None:
    rng = np.random.default_rng(1)
    start = rng.normal(size=(2, LAYERS, PAGES, PAGE, KV_HEADS, SIZE)).astype(kind)
    angle = rng.uniform(0, 6, size=(TOKENS, SIZE // 2)).astype(np.float32)
    angles = jnp.cos(angle), jnp.sin(angle)
    weights = tuple(jnp.asarray(w) for w in rng.uniform(-0.5, 0.5, size=(2, SIZE if norm else 0)).astype(np.float32))
    norms = (Norm(weights[0], EPS, OFFSET), Norm(weights[1], EPS, OFFSET)) if norm else None
    sinks = jnp.linspace(-3, 3, HEADS) if norm else None
    one = step()

    @jax.jit
    def expected(cache: KVCache, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[KVCache, jax.Array]:
        def layer(cache: KVCache, x: tuple[jax.Array, ...]) -> tuple[KVCache, jax.Array]:
            at, q, k, v = x
            settings = {
                "scale": 0.125,
                "window": window,
                "soft_cap": cap,
                "angles": angles,
                "qk_norm": norms,
                "sinks": sinks,
            }
            out, cache = attend(cache, at, q, k, v, one, **settings)
            return cache, out

        return jax.lax.scan(layer, cache, (jnp.arange(LAYERS), q, k, v))

    def actual(
        cache: tuple[jax.Array, jax.Array], q: jax.Array, k: jax.Array, v: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        def layer(
            cache: tuple[jax.Array, jax.Array], x: tuple[jax.Array, ...]
        ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            at, q, k, v = x
            settings = {"window": np.int64(window or 0), "soft_cap": np.float32(cap or 0)}
            out, cache = native(q, k, v, cache, at, one, angles, weights, layout, sinks=sinks, **settings)
            return cache, out

        return jax.lax.scan(layer, cache, (jnp.arange(LAYERS), q, k, v))

    held, out = expected(KVCache(jnp.asarray(start[0]), jnp.asarray(start[1])), *inputs())
    mine = by_head(*start) if layout == "by_head" else (jnp.asarray(start[0]), jnp.asarray(start[1]))
    new, got = jax.jit(actual, donate_argnums=0)(mine, *inputs())
    # A rotated key may fall on the other side of a rounding to 16 bits.
    np.testing.assert_allclose(got, out, atol={2: 2e-2, 4: 5e-6}[np.dtype(kind).itemsize])
    right = by_head(np.asarray(held.k), np.asarray(held.v)) if layout == "by_head" else (held.k, held.v)
    for cache, one_right in zip(new, right, strict=True):
        near = {2: 4e-2, 4: 1e-6}[np.dtype(kind).itemsize]
        np.testing.assert_allclose(np.asarray(cache, np.float32), np.asarray(one_right, np.float32), atol=near)


@pytest.mark.parametrize(
    ("kind", "layout"),
    [(jnp.float16, "by_head"), (jnp.bfloat16, "by_token"), (jnp.int8, "by_head"), (jnp.int8, "by_token")],
)
def test_both_implementations_round_alike(kind: type, layout: Layout) -> None:
    q, k, v = (x * 1e3 for x in inputs())
    k = k.at[:, 4, 0].set(0).at[:, 5, 1].set(1e-33).at[:, 6, 2, 3].set(1e6)

    def run(kernels: Kernels, layout: Layout) -> tuple[KVCache, jax.Array]:
        one = replace(step(), kernels=kernels)

        @partial(jax.jit, donate_argnums=0)
        def layers(cache: KVCache) -> tuple[KVCache, jax.Array]:
            def layer(cache: KVCache, x: tuple[jax.Array, ...]) -> tuple[KVCache, jax.Array]:
                at, q, k, v = x
                out, cache = attend(cache, at, q, k, v, one, scale=1e-7)
                return cache, out

            return jax.lax.scan(layer, cache, (jnp.arange(LAYERS), q, k, v))

        return layers(KVCache.zeros(LAYERS, PAGES, PAGE, KV_HEADS, SIZE, jnp.dtype(kind), layout))

    (right, expected), (held, out) = run("reference", "by_token"), run("cpu", layout)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-2)  # of values in thousands
    views = {"by_token": ((0, 1, 2, 3, 4),) * 2, "by_head": ((0, 1, 4, 2, 3), (0, 1, 3, 2, 4))}[layout]
    for mine, theirs, axes in zip((held.k, held.v), (right.k, right.v), views, strict=True):
        np.testing.assert_array_equal(np.asarray(mine).transpose(axes), theirs)
    if kind == jnp.int8:
        for scale, theirs in ((held.k_scale, right.k_scale), (held.v_scale, right.v_scale)):
            np.testing.assert_array_equal(scale if layout == "by_token" else np.swapaxes(scale, 2, 3), theirs)


def call_once(**changes: object) -> Callable[[], jax.Array]:
    layout = str(changes.get("layout", "by_head"))
    cache = tuple(jnp.zeros((LAYERS, PAGES, *shape)) for shape in SHAPES.get(layout, SHAPES["by_head"]))
    q, k, v = (x[0] for x in inputs())
    none, unnormed = jnp.zeros((0, 0)), jnp.zeros(0)
    layer = changes.pop("layer", jnp.int32(0))

    def call() -> jax.Array:
        run = jax.jit(
            lambda cache: native(q, k, v, cache, layer, step(), (none,) * 2, (unnormed,) * 2, **changes),
            donate_argnums=0,
        )
        return jax.block_until_ready(run(cache)[0])

    return call


def test_a_cache_that_is_not_updated_in_place_is_an_error() -> None:
    assert np.isfinite(call_once()()).all()
    with pytest.raises(jax.errors.JaxRuntimeError, match="XLA copied the cache's k"):
        call_once(aliases={})()
    with pytest.raises(jax.errors.JaxRuntimeError, match="XLA copied the cache's v"):
        call_once(aliases={3: 1})()


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="no such layer"):
        call_once(layer=jnp.int32(LAYERS))()
    with pytest.raises(jax.errors.JaxRuntimeError, match="by_token or by_head"):
        call_once(layout="sideways")()
