from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slipstream.engine import page_io
from slipstream.engine.lowering import Lowering
from slipstream.engine.memory import KVShape
from slipstream.engine.page_io import BlockShape, PageIO
from slipstream.engine.step_cache import StepCache
from slipstream.kernels.compiles import CompileCounter
from slipstream.kernels.ragged import Kernels, KVCache
from slipstream.parallel.mesh import make_mesh
from slipstream.parallel.rules import rules_of
from slipstream.parallel.spread import heads_of
from tests.engine import tiny

LAYERS, PAGES, SIZE, HEADS, HEAD = 2, 7, 16, 2, 16


@pytest.fixture(autouse=True)
def one_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs two compilations."""
    monkeypatch.setattr(page_io, "WIDTHS", (4,))


@cache
def page_mover(
    kernels: Kernels = "reference", dtype: Any = np.float32, tp: int = 0, values: bool = True, row: int = HEAD
) -> tuple[PageIO, KVCache]:
    """Compiled, with an empty cache."""
    mesh = make_mesh(jax.devices()[:tp], HEADS) if tp else None
    heads = heads_of(mesh, rules_of(experts=False, tokens=False)) if mesh else None
    kv = KVShape(LAYERS, HEADS, row, SIZE, np.dtype(dtype), values, heads)
    lowering = Lowering(*tiny.model(), kv, 2, 32, kernels, mesh)
    io = PageIO(lowering, HEAD)
    io.compile(PAGES, StepCache(None, {}, jax.devices()))
    return io, lowering.state(PAGES).cache


def empty(shapes: KVCache) -> KVCache:
    """A cache of these shapes: a move gives up the one before it."""
    return jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), shapes)


def content(io: PageIO, pages: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(-127, 128, shape).astype(dtype) for name, (shape, dtype) in io.shape.leaves(pages).items()
    }


def host(blocks: Any, pages: int) -> dict[str, np.ndarray]:
    return {name: np.asarray(array)[:, :pages] for name, array in blocks.items()}


def assert_equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert array.dtype == right[name].dtype
        np.testing.assert_array_equal(array, right[name], err_msg=name)


CACHES: dict[str, dict[str, Any]] = {
    "by token": {},
    "by row, padded": {"kernels": "pallas_tpu", "row": 128},
    "by head": {"kernels": "cpu"},
    "two devices, by row": {"tp": 2, "kernels": "pallas_gpu"},
}


@pytest.mark.parametrize(
    ("give", "take"),
    [
        ("by head", "by token"),
        ("by head", "two devices, by row"),
        ("by row, padded", "by head"),
        ("two devices, by row", "by row, padded"),
    ],
)
def test_pages_move_between_caches(give: str, take: str) -> None:
    """Through a cache of one layout, out of it, and into the other, page 0 among them; other pages stay."""
    (a, shapes_a), (b, shapes_b) = page_mover(**CACHES[give]), page_mover(**CACHES[take])
    first = content(a, a.width_for(3))
    cache = a.scatter(empty(shapes_a), [0, 5, 2], a.place(first))
    given = a.gather(cache, [0, 5, 2])
    assert_equal(host(given, 3), host(first, 3))
    assert a.shape.digest() == b.shape.digest()
    moved = b.scatter(empty(shapes_b), [6, 0, 3], b.place({n: np.asarray(x) for n, x in given.items()}))
    assert_equal(host(b.gather(moved, [6, 0, 3]), 3), host(first, 3))
    assert all(not array.any() for array in host(b.gather(moved, [1, 2, 4, 5]), 4).values())


@pytest.mark.parametrize(
    ("dtype", "kernels", "values"),
    [
        (jnp.bfloat16, "cpu", True),
        (jnp.float8_e4m3fn, "reference", False),
        (np.int8, "pallas_tpu", True),
    ],
)
def test_every_type_of_cache(dtype: Any, kernels: Kernels, values: bool) -> None:
    io, shapes = page_mover(kernels, dtype, values=values)
    blocks = content(io, io.width_for(2), 1)
    assert set(blocks) == {"k", *["v"] * values, *["k_scale"] * (dtype == np.int8)} | (
        {"v_scale"} if values and dtype == np.int8 else set()
    )
    cache = io.scatter(empty(shapes), [4, 1], io.place(blocks))
    assert_equal(host(io.gather(cache, [4, 1]), 2), host(blocks, 2))


def test_a_cache_holds_what_its_kernels_read() -> None:
    """by_head: one element of neighbouring keys lies side by side, and the scales with their head."""
    io, shapes = page_mover("cpu", np.int8)
    blocks = content(io, 4, 2)
    cache = io.scatter(empty(shapes), [3], io.place(blocks))
    assert cache.v is not None and cache.k_scale is not None
    np.testing.assert_array_equal(cache.k[:, 3], blocks["k"][:, 0].transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(cache.v[:, 3], blocks["v"][:, 0].transpose(0, 2, 1, 3))
    np.testing.assert_array_equal(cache.k_scale[:, 3], blocks["k_scale"][:, 0].transpose(0, 2, 1))


def test_a_move_copies_no_cache_and_compiles_nothing() -> None:
    pages = 2000
    io, _ = page_mover("cpu")
    io.compile(pages, StepCache(None, {}, jax.devices()))
    whole = pages * io.shape.bytes_per_page
    for moves in (io._gathers, io._scatters):
        for step in moves.values():
            assert step.temporaries < whole / 8
    cache = empty(io._lowering.state(pages).cache)
    blocks = content(io, io.most)
    counter = CompileCounter()
    counter.mark_ready()
    for count in (1, 3, 4):
        room = {name: array[:, : io.width_for(count)] for name, array in blocks.items()}
        cache = io.scatter(cache, range(count), io.place(room))
        host(io.gather(cache, range(count)), count)
    counter.close()
    assert counter.after_ready == 0


def test_widths_follow_the_size_of_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, _ = page_mover()
    monkeypatch.undo()
    io = PageIO(compiled._lowering, HEAD)
    assert [io.width_for(n) for n in (1, 4, 5, 32)] == [4, 4, 32, 32]
    for count in (0, 33):
        with pytest.raises(ValueError, match="are not 1 to 32"):
            io.width_for(count)
    monkeypatch.setattr(page_io, "MOST_BYTES", 8 * io.shape.bytes_per_page)
    assert PageIO(io._lowering, HEAD).widths == (4,)
    monkeypatch.setattr(page_io, "MOST_BYTES", 1)
    assert PageIO(io._lowering, HEAD).widths == (1,)


def test_digests_tell_pages_apart() -> None:
    shape = BlockShape(LAYERS, SIZE, HEADS, HEAD, np.dtype(np.float16), True)
    others = [
        replace(shape, layers=3),
        replace(shape, page_size=8),
        replace(shape, kv_heads=1),
        replace(shape, head_dim=8),
        replace(shape, dtype=np.dtype(np.int8)),
        replace(shape, values=False),
    ]
    assert len({one.digest() for one in [shape, *others]}) == 7
