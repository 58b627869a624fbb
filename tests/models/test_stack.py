"""The layer scan against a plain loop, for equal and mixed layers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slipstream.kernels.ragged import KVCache, Step
from slipstream.models.llm.rope import Rope
from slipstream.models.llm.stack import Kind, period, stack


def kinds_of(windows: str) -> tuple[Kind, ...]:
    """A layer a digit, its window."""
    return tuple(Kind(Rope((1.0,)), int(window)) for window in windows)


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ("1", 1),
        ("1111", 1),
        ("1212", 2),
        ("12121", 2),
        ("111112" * 3, 6),
        ("111112111112111", 6),
        ("1121", 3),
        ("1222", 4),
    ],
)
def test_period(windows: str, expected: int) -> None:
    assert period(kinds_of(windows)) == expected


@pytest.mark.parametrize("windows", ["1", "3333", "1212", "12121", "113113113", "111112111112111", "1222", "31"])
def test_stack_equals_a_loop(windows: str) -> None:
    """Layers in order, each with its own weights, kind and index; what they do does not commute."""
    kinds = kinds_of(windows)
    weights = {"w": jnp.arange(1.0, len(kinds) + 1)}
    cache = KVCache.zeros(len(kinds), 1, 1, 1, 1, jnp.dtype("float32"))

    def block(
        w: dict[str, jax.Array], x: jax.Array, step: Step, cache: KVCache, layer: jax.Array, kind: Kind
    ) -> tuple[jax.Array, KVCache]:
        x = (x * kind.window + w["w"]) % 11
        return x, KVCache(cache.k.at[layer].set(x[0]), cache.v.at[layer].set(layer))

    x, cache = jax.jit(lambda x, cache: stack(block, weights, x, Step.whole(1, 1), cache, kinds))(
        jnp.array([5.0]), cache
    )
    expected, seen = 5.0, []
    for layer, kind in enumerate(kinds):
        expected = (expected * kind.window + layer + 1) % 11
        seen.append(expected)
    assert x.tolist() == [expected]
    assert cache.k.ravel().tolist() == seen
    assert cache.v.ravel().tolist() == list(range(len(kinds)))


def test_compile_size_does_not_grow_with_depth() -> None:
    """Equal layers and whole periods are scanned: the program of 60 layers is that of 12."""

    def lines(count: int) -> int:
        kinds = kinds_of("111112" * (count // 6))
        weights = jnp.ones((count, 4))
        cache = KVCache.zeros(count, 1, 1, 1, 1, jnp.dtype("float32"))
        traced = jax.make_jaxpr(
            lambda x: stack(
                lambda w, x, s, c, i, k: (x @ jnp.outer(w, w) * k.window, c), weights, x, Step.whole(1, 1), cache, kinds
            )
        )(jnp.ones(4))
        return len(str(traced).splitlines())

    assert np.ptp([lines(12), lines(60)]) == 0


@pytest.mark.parametrize("forms", ["0101", "01010", "0001111", "1101", "010010010", "0110"])
def test_layers_of_several_forms(forms: str) -> None:
    """Each takes its own weights from its form's stack, and does what its form does, in the layers' order."""
    kinds = tuple(Kind(Rope((1.0,)), form=int(form)) for form in forms)
    numbers = jnp.arange(1.0, len(kinds) + 1)
    weights = tuple(numbers[np.asarray([kind.form == form for kind in kinds])] for form in (0, 1))
    cache = KVCache.zeros(len(kinds), 1, 1, 1, 1, jnp.dtype("float32"))

    def block(
        w: jax.Array, x: jax.Array, step: Step, cache: KVCache, layer: jax.Array, kind: Kind
    ) -> tuple[jax.Array, KVCache]:
        x = (x * (2 + kind.form) + w) % 13
        return x, KVCache(cache.k.at[layer].set(x[0]), cache.v)

    run = jax.jit(lambda x, cache: stack(block, weights, x, Step.whole(1, 1), cache, kinds))
    cache = run(jnp.array([5.0]), cache)[1]
    expected, seen = 5.0, []
    for layer, kind in enumerate(kinds):
        expected = (expected * (2 + kind.form) + layer + 1) % 13
        seen.append(expected)
    assert cache.k.ravel().tolist() == seen
