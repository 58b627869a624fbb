"""Mixtures of experts against a loop over tokens in numpy, on every implementation, with padding and unequal loads."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slipstream.checkpoint.loading import empty
from slipstream.kernels.experts import Clamped, Experts, Routing, grouped, in_blocks, mixture, ragged
from slipstream.kernels.matmul import Around, is_leaf, layer_of
from slipstream.kernels.native import library
from slipstream.kernels.norm import Norm
from slipstream.kernels.packed import Packed, packing_of
from slipstream.spec.param import Axis, param, stacked
from slipstream.spec.source import Blocks

E, D, F, CHOSEN = 6, 32, 48, 3
CLAMPED = Clamped(1.7, 0.6)


def weights(*, biased: bool = False) -> Experts:
    rng = np.random.default_rng(1)
    shapes: dict[str, tuple[int, ...]] = {"gate": (E, D, F), "up": (E, D, F), "down": (E, F, D)}
    shapes |= {"gate_bias": (E, F), "up_bias": (E, F), "down_bias": (E, D)} if biased else {}
    return Experts(**{name: jnp.asarray(rng.standard_normal(shape, np.float32) / 6) for name, shape in shapes.items()})


def routing(tokens: int, crowded: bool = False) -> Routing:
    """Each token's experts, in no order; `crowded`: all choose the same."""
    rng = np.random.default_rng(tokens)
    chosen = [rng.permutation(E)[:CHOSEN] if not crowded else np.array([4, 0, 5]) for _ in range(tokens)]
    return Routing(jnp.asarray(chosen, jnp.int32), jnp.asarray(rng.random((tokens, CHOSEN), np.float32)), E)


def states(tokens: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(2).standard_normal((tokens, D), np.float32))


def expected(x: Any, w: Experts, to: Routing, activation: Any) -> np.ndarray:
    """One token and one expert after the other, in float64."""
    x, w = np.float64(x), jax.tree.map(np.float64, w)
    out: np.ndarray = np.zeros_like(x)
    for t, (chosen, shares) in enumerate(zip(np.asarray(to.experts), np.asarray(to.shares), strict=True)):
        for e, share in zip(chosen, shares, strict=True):
            gate, up = x[t] @ w.gate[e], x[t] @ w.up[e]
            if w.gate_bias is not None and w.up_bias is not None:
                gate, up = gate + w.gate_bias[e], up + w.up_bias[e]
            if activation == "silu":
                hidden = gate / (1 + np.exp(-gate)) * up
            else:
                gate, up = np.minimum(gate, 0.6), np.clip(up, -0.6, 0.6)
                hidden = gate / (1 + np.exp(-1.7 * gate)) * (up + 1)
            y = hidden @ w.down[e] + (0 if w.down_bias is None else w.down_bias[e])
            out[t] += share * y
    return out


@pytest.mark.parametrize("tokens", [1, 7, 64])
@pytest.mark.parametrize(("activation", "biased", "crowded"), [("silu", False, True), (CLAMPED, True, False)])
def test_equals_a_loop(tokens: int, crowded: bool, activation: Any, biased: bool) -> None:
    x, w, to = states(tokens), weights(biased=biased), routing(tokens, crowded)
    wanted = expected(x, w, to, activation)
    np.testing.assert_allclose(jax.jit(partial(mixture, activation=activation))(x, w, to), wanted, atol=2e-5)
    groups = grouped(to, None)
    for implementation in (ragged, partial(in_blocks, block=(16, 16))):
        y = jax.jit(partial(implementation, activation=activation))(x, w, groups)
        mixed = np.einsum("tjd,tj->td", np.asarray(y)[np.asarray(groups.places)], np.asarray(to.shares))
        np.testing.assert_allclose(mixed, wanted, atol=2e-5)


def test_padding_goes_nowhere_and_harms_nobody() -> None:
    """Padding that is not a number reaches no real token, and no expert computes it."""
    real, x, w, to = 5, states(12), weights(), routing(12)
    wanted = expected(x, w, to, "silu")[:real]
    dirty = x.at[real:].set(jnp.nan)
    around = Around(real=jnp.int32(real))
    np.testing.assert_allclose(mixture(dirty, w, to, "silu", around)[:real], wanted, atol=2e-5)
    groups = grouped(to, jnp.int32(real))
    assert int(groups.starts[-1]) == real * CHOSEN
    assert int(mixture(x, w, to, "silu", Around(real=jnp.int32(0))).sum()) == 0


def test_every_choice_is_in_its_experts_group() -> None:
    to = routing(40)
    groups = jax.tree.map(np.asarray, grouped(to, jnp.int32(33)))
    assert sorted(groups.places.ravel().tolist()) == list(range(120)), "no choice is dropped, none is there twice"
    for t, j in np.ndindex(33, CHOSEN):
        expert, place = int(to.experts[t, j]), groups.places[t, j]
        assert groups.starts[expert] <= place < groups.starts[expert + 1]
        assert groups.tokens[place] == t
        assert groups.experts[place] == expert


def test_what_stands_around_it() -> None:
    x, w, to = states(9), weights(), routing(9)
    norm = Norm(jnp.linspace(0.5, 2, D), 1e-5)
    after = mixture(x, w, to, "silu", Around(norm=norm, add=x))
    np.testing.assert_allclose(after, np.asarray(x) + expected(norm(x), w, to, "silu"), atol=2e-5)


def test_a_row_has_the_same_bits_in_any_company() -> None:
    """Alone, among few and among many: the blocks have 2, 4 and 32 rows."""
    x, w, to = states(64), weights(), routing(64)
    run = jax.jit(partial(mixture, activation="silu"))
    whole = np.asarray(run(x, w, to))
    for count in (1, 5, 16):
        part = run(x[:count], w, Routing(to.experts[:count], to.shares[:count], E))
        assert np.array_equal(part, whole[:count]), count


def test_bfloat16() -> None:
    x, w, to = states(8), weights(), routing(8)
    narrow_x, narrow_w = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (x, w))
    y = mixture(narrow_x, narrow_w, to, "silu")
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(np.float32), expected(x, w, to, "silu"), atol=0.05)


@pytest.mark.skipif(library.reason() is not None, reason="the native kernels were not built here")
def test_native_leaves_by_layer_and_expert() -> None:
    """Stacks of layers and experts in native leaves: the layer is taken outside the loop, an expert inside it."""
    plain = [weights(), jax.tree.map(lambda leaf: leaf * 1.5, weights())]
    x, to = states(21), routing(21)

    def packed(name: str, out: Axis, summed: Axis) -> Packed:
        layout = f"{out.letter} {summed.letter} -> {summed.letter} {out.letter}"
        each = Axis("expert", "e", E)
        leaf = stacked(2, lambda at: param(summed | out, at + "{}", layout, contract=(summed.role,), each=each))
        assert leaf.shape == (2, E, summed.size, out.size)
        stored = [np.ascontiguousarray(getattr(w, name)[e].T) for w in plain for e in range(E)]
        blocks = [Blocks("F32", value.shape, partial(value.view, np.uint8)) for value in stored]
        packing = packing_of(leaf, blocks)
        assert packing is not None
        data = empty((packing.bounds[-1],), np.dtype(np.uint8))
        packing.pack(blocks, data)
        return Packed.of(packing, data, "exact", jax.devices()[0])

    d, f = Axis("embed", "d", D), Axis("mlp", "f", F)
    leaves = Experts(packed("gate", f, d), packed("up", f, d), packed("down", d, f))

    @jax.jit
    def run(leaves: Experts, layer: jax.Array) -> jax.Array:
        own = jax.tree.map(partial(layer_of, index=layer), leaves, is_leaf=is_leaf)
        return mixture(x, own, to, "silu", Around(real=jnp.int32(17)))

    for layer, w in enumerate(plain):
        np.testing.assert_allclose(run(leaves, jnp.int32(layer))[:17], expected(x, w, to, "silu")[:17], atol=5e-5)
