"""Products with weights in GGUF's blocks, as a forward calls them, against the dequantized weight in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slipstream.kernels.matmul import Activation, Around, dot, dots, gated_mlp, is_leaf, layer_of, rows_of
from slipstream.kernels.native import library
from slipstream.kernels.norm import Norm
from slipstream.kernels.packed import Packed, Precision, packing_of
from slipstream.spec.param import Axis, Dims, Param
from slipstream.spec.source import Blocks

pytestmark = pytest.mark.skipif(library.reason() is not None, reason="the native kernels were not built here")

D, N, H, V = Axis("embed", "d", 96), Axis("heads", "n", 3), Axis("head", "h", 32), Axis("vocab", "v", 41)
F = Axis("mlp", "f", 64)
LAYERS = 3
RNG = np.random.default_rng(5)


def blocks_of(kind: str, values: np.ndarray) -> tuple[Blocks, np.ndarray]:
    """The values in blocks, and what these hold."""
    code = gguf.GGMLQuantizationType[kind]
    data = gguf.quants.quantize(values, code)
    return Blocks(kind, values.shape, lambda: data), gguf.quants.dequantize(data, code)


def leaf(kinds: str | Sequence[str], param: Param, precision: Precision = "exact") -> tuple[Packed, np.ndarray]:
    """A packed leaf and its numbers [l, *stored shape]. `kinds`: of all layers, or of each."""
    kinds = [kinds] * (param.layers or 1) if isinstance(kinds, str) else kinds
    made = [blocks_of(kind, RNG.normal(size=param.stored_shape).astype(np.float32)) for kind in kinds]
    packing = packing_of(param, [blocks for blocks, _ in made])
    assert packing is not None
    data = np.zeros(packing.bounds[-1], np.uint8)
    packing.pack([blocks for blocks, _ in made], data)
    packed = Packed.of(packing, data, precision, jax.devices()[0])
    assert jax.tree.map(jnp.shape, packed.data) == packing.abstract(precision).data.shape
    return packed, np.stack([numbers for _, numbers in made])


WQ = Param(D | N | H, ("q",) * LAYERS, "(n h) d -> d n h", ("embed",), layers=LAYERS)
WO = Param(N | H | D, ("o",) * LAYERS, "d (n h) -> n h d", ("heads", "head"), layers=LAYERS)
GATE = Param(D | F, ("g",) * LAYERS, "f d -> d f", ("embed",), layers=LAYERS)
DOWN = Param(F | D, ("o",) * LAYERS, "d f -> f d", ("mlp",), layers=LAYERS)
TABLE = Param(V | D, ("e",), None, ("embed",))


MIXED = ("Q4_1", "Q8_0", "Q5_0")


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", MIXED])
@pytest.mark.parametrize(("precision", "tolerance"), [("exact", 1e-4), ("fast", 2e-2)])
def test_products_equal_float64(kind: str | tuple[str, ...], precision: Precision, tolerance: float) -> None:
    wq, numbers = leaf(kind, WQ, precision)
    x = RNG.normal(size=(5, 96)).astype(np.float32)
    for layer in range(LAYERS):
        call = jax.jit(lambda x, w, i: dot("td,dnh->tnh", x, layer_of(w, i), Around(real=jnp.int32(4))))
        y = np.asarray(call(x, wq, layer))
        want = (x.astype(np.float64) @ numbers[layer].T.astype(np.float64)).reshape(5, 3, 32)
        assert np.abs(y - want)[:4].max() < tolerance * np.abs(want).max()
        assert not y[4].any(), "padding is not computed"


def test_an_output_projection_sums_over_two_axes() -> None:
    wo, numbers = leaf("Q8_0", WO)
    x = RNG.normal(size=(2, 3, 32)).astype(np.float32)
    y = np.asarray(dot("tnh,nhd->td", x, layer_of(wo, 2)))
    want = x.reshape(2, 96).astype(np.float64) @ numbers[2].T
    assert np.abs(y - want).max() < 1e-4 * np.abs(want).max()


def test_a_table_gives_rows_and_logits() -> None:
    table, [numbers] = leaf("Q8_0", TABLE)
    ids = jnp.array([40, 0, 7], jnp.int32)
    np.testing.assert_allclose(rows_of(table, ids), numbers[[40, 0, 7]], rtol=1e-6)
    x = RNG.normal(size=(2, 96)).astype(np.float32)
    logits = np.asarray(dot("rd,vd->rv", x, table, dtype=jnp.float32))
    want = x.astype(np.float64) @ numbers.T
    assert np.abs(logits - want).max() < 1e-4 * np.abs(want).max()


def test_a_row_is_the_same_in_any_batch() -> None:
    wq, _ = leaf("Q4_1", WQ)
    x = RNG.normal(size=(40, 96)).astype(np.float32)
    together = np.asarray(dot("td,dnh->tnh", x, layer_of(wq, 1)))
    for row in (0, 7, 39):
        alone = np.asarray(dot("td,dnh->tnh", x[row : row + 1], layer_of(wq, 1)))
        np.testing.assert_array_equal(alone[0], together[row])


def test_a_packed_leaf_stays_whole_in_a_tree() -> None:
    wq, _ = leaf("Q8_0", WQ)
    assert jax.tree.leaves({"w": wq}, is_leaf=is_leaf) == [wq]


@pytest.mark.parametrize(
    ("param", "kinds"),
    [
        (WQ, ["Q4_0", None, "Q4_0"]),
        (WQ, ["Q4_0", "IQ4_NL", "Q4_0"]),
        (WQ, ["IQ4_NL"] * 3),
        (Param(Dims((D,)), ("norm",), None, ()), ["Q8_0"]),
        (Param(D | V, ("x",), None, ("embed",)), ["Q8_0"]),
    ],
)
def test_what_cannot_be_packed_is_declined(param: Param, kinds: list[Any]) -> None:
    blocks = [
        None if kind is None else Blocks(kind, param.stored_shape, lambda: np.zeros(0, np.uint8)) for kind in kinds
    ]
    assert packing_of(param, blocks) is None


def test_an_equation_that_does_not_fit_is_an_error() -> None:
    wq, _ = leaf("Q8_0", WQ)
    with pytest.raises(ValueError, match="does not fit a weight that keeps nh and sums over d"):
        dot("td,dhn->thn", jnp.ones((1, 96)), layer_of(wq, 0))


def test_several_products_of_one_input_equal_each_alone() -> None:
    wq, _ = leaf("Q4_1", WQ)
    wk, _ = leaf("Q8_0", WQ)
    x = RNG.normal(size=(3, 96)).astype(np.float32)
    eqs = ("td,dnh->tnh", "td,dnh->tnh")
    together = dots(eqs, x, [layer_of(w, 1) for w in (wq, wk)])
    for y, w in zip(together, (wq, wk), strict=True):
        np.testing.assert_array_equal(y, dot(eqs[0], x, layer_of(w, 1)))


AROUND = {
    "alone": Around(),
    "normed": Around(Norm(jnp.linspace(-1, 1, 96), 1e-5, 1.0), add=jnp.ones((3, 96))),
    "twice": Around(Norm(jnp.ones(96), 1e-5), Norm(jnp.linspace(0, 2, 96), 1e-6), jnp.ones((3, 96)), jnp.int32(2)),
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_a_feed_forward_equals_that_of_arrays(activation: Activation, around: Around) -> None:
    gate, up, down = (leaf("Q4_0", param) for param in (GATE, GATE, DOWN))
    x = RNG.normal(size=(3, 96)).astype(np.float32)
    ours = gated_mlp(x, *(layer_of(w, 1) for w, _ in (gate, up, down)), activation, around)
    plain = (jnp.asarray(numbers[1].T) for _, numbers in (gate, up, down))
    theirs = gated_mlp(x, *plain, activation, around)
    np.testing.assert_allclose(ours[:2], theirs[:2], atol=1e-4 * np.abs(theirs).max())


def test_a_product_with_all_around_it_equals_that_of_arrays() -> None:
    wo, numbers = leaf("Q8_0", WO)
    x = RNG.normal(size=(3, 3, 32)).astype(np.float32)
    around = Around(after=Norm(jnp.linspace(0, 2, 96), 1e-5, 1.0), add=jnp.full((3, 96), 2.0))
    ours = dot("tnh,nhd->td", x, layer_of(wo, 0), around)
    theirs = dot("tnh,nhd->td", x, jnp.asarray(numbers[0].T.reshape(3, 32, 96)), around)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_weights_of_different_leaf_types_are_multiplied_one_by_one() -> None:
    packed, numbers = leaf("Q8_0", TABLE)
    x = RNG.normal(size=(2, 96)).astype(np.float32)
    plain = jnp.asarray(numbers[0])
    ours, theirs = dots(("td,vd->tv",) * 2, x, (packed, plain))
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(np.asarray(theirs)).max())
