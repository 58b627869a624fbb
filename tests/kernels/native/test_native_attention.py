"""Native attention against float64, over pages filled with NaN wherever a row has no business."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from tests.kernels.native.guard_pages import guarded
from tests.kernels.native.ragged_case import (
    LAYER,
    LAYERS,
    LAYOUTS,
    TYPES,
    Options,
    Pool,
    Row,
    Sizes,
    Step,
    Tokens,
    cached,
    native,
    prepared,
    reference,
)

SMALL, PLAIN = Sizes(), Options()
LONG = 560  # three segments of keys
DECODE = [(LONG, 1), (5, 1), (1, 1), (17, 1)]
MIXED = [(LONG, 1), (LONG - 3, 40), (5, 5), (1, 1), (33, 33), (64, 64), (9, 2)]
ODD = [(LONG - 3, 40), (5, 5), (1, 1)]


@pytest.fixture(params=["portable", "avx2", "avx512"], autouse=True)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    found = native.slipstream_set_isa(ctypes.c_char_p(request.param.encode()))
    assert found in (0, -2)
    if found == 0:
        assert native.slipstream_isa() == request.param.encode()
    yield request.param
    native.slipstream_set_isa(None)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    yield
    native.slipstream_set_threads(0)


def run(
    rows: Sequence[tuple[int, int]],
    tokens: int,
    slots: int,
    sizes: Sizes = SMALL,
    options: Options = PLAIN,
    seed: int = 0,
) -> None:
    """Rows of (length, count): their first length - count tokens are in the cache, the last count are this step's."""
    rng = np.random.default_rng(seed)
    pool = Pool(sizes, options, pages=sum(-(-length // sizes.page) for length, _ in rows) + 9)
    sequences = {i: Tokens.random(rng, length, sizes) for i, (length, _) in enumerate(rows)}
    held = {i: cached(sequence, options) for i, sequence in sequences.items()}
    for i, (length, count) in enumerate(rows):
        before = prepared(sequences[i], options)
        pool.fill(i, before.k[: length - count], before.v[: length - count])
        pool.own(i, length)
    step = Step(pool, sequences, [Row(i, *row) for i, row in enumerate(rows)], tokens, slots)
    out = step.run()
    for i, row in enumerate(step.rows):
        here = slice(step.starts[i], step.starts[i + 1])
        np.testing.assert_allclose(out[here], reference(sequences[i], row, options), atol=2e-6)
    assert not out[step.starts[-1] :].any(), "padding must come out as zeros"
    used = sorted(page for pages in pool.owned.values() for page in pages)
    others = sorted(set(range(pool.pages)) - set(used))
    for name in ("k", "v"):
        cache = pool.widened(name)
        assert np.isnan(cache[LAYERS - 1 - LAYER]).all(), "another layer's pages were written"
        assert np.isnan(cache[LAYER, others]).all(), "a page that no row owns was written"
        for i, (length, _) in enumerate(rows):
            mine = cache[LAYER, pool.owned[i]].reshape(-1, sizes.kv_heads, sizes.size)
            expected = getattr(held[i], name).astype(np.float32)
            rounding = 2e-6 if (options.rotate or options.norm) and name == "k" else 0  # of float32 on the way
            np.testing.assert_allclose(mine[:length], expected, rtol=0, atol=rounding)
            assert np.isnan(mine[length:]).all(), "beyond the end of a sequence was written"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", [0, 1, 7, 300])
@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_decode_and_mixed_equal_float64(window: int, cap: float, layout: str) -> None:
    options = Options(window=window, soft_cap=cap, layout=layout)
    run(DECODE, 4, 4, options=options)
    run(MIXED, 160, 8, options=options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(heads=1, kv_heads=1, size=3, page=1),
        Sizes(heads=4, kv_heads=4, page=16),
        Sizes(heads=5, kv_heads=1, page=7),
        Sizes(heads=9, kv_heads=3, size=64, page=16),
        Sizes(heads=4, kv_heads=1, size=256, page=16),
        Sizes(heads=2, kv_heads=1, size=80, page=32),
        Sizes(heads=7, kv_heads=1, size=20, page=16),
        Sizes(heads=32, kv_heads=1, size=16, page=48),
        Sizes(heads=100, kv_heads=1, size=16, page=16),
    ],
)
def test_sizes(sizes: Sizes, layout: str) -> None:
    run(ODD, 64, 3, sizes, Options(layout=layout))
    run(DECODE, 5, 4, sizes, Options(layout=layout, window=70))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["f16", "bf16", "i8"])
@pytest.mark.parametrize("sizes", [Sizes(), Sizes(heads=9, kv_heads=3, size=64, page=16), Sizes(size=37, page=5)])
def test_a_narrow_cache_rounds_keys_and_values_only(kind: str, layout: str, sizes: Sizes) -> None:
    run(MIXED, 160, 8, sizes, Options(type=kind, layout=layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float16_saturates(layout: str) -> None:
    sequence = Tokens.random(np.random.default_rng(0), 20, SMALL)
    loud = Tokens(sequence.q * 1e-5, sequence.k * 1e5, sequence.v * 1e5)
    options = Options(type="f16", layout=layout)
    pool = Pool(SMALL, options, pages=9)
    out = Step(pool, {0: loud}, [Row(0, 20, 20)], 20, 1).run()
    held = pool.v[LAYER, pool.owned[0]].reshape(-1, SMALL.kv_heads, SMALL.size)
    assert np.abs(held).max() == 65504
    np.testing.assert_allclose(out, reference(loud, Row(0, 20, 20), options), rtol=1e-5, atol=1)


def test_int8_holds_zeros_tiny_numbers_and_what_is_not_finite() -> None:
    sequence = Tokens.random(np.random.default_rng(0), 4, SMALL)
    for array in (sequence.k, sequence.v):
        array[0], array[1] = 0, array[1] * 1e-32
        array[3, 0, 2], array[3, 1, SMALL.size - 1] = np.inf, np.nan
    pool = Pool(SMALL, Options(type="i8"), pages=9)
    out = Step(pool, {0: sequence}, [Row(0, 4, 4)], 4, 1).run()
    assert not out[:2].any()
    finite = Tokens(sequence.q[:3], sequence.k[:3], sequence.v[:3])
    np.testing.assert_allclose(out[:3], reference(finite, Row(0, 3, 3), pool.options), atol=2e-6)
    assert np.isnan(out[3]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", [0, 3, 20])
@pytest.mark.parametrize("sizes", [SMALL, Sizes(heads=9, kv_heads=3, size=64, page=16), Sizes(heads=2, kv_heads=2)])
def test_a_token_that_a_query_does_not_see_does_not_reach_it(sizes: Sizes, window: int, layout: str) -> None:
    options, length, odd = Options(window=window, layout=layout), 70, 33
    clean = Tokens.random(np.random.default_rng(0), length, sizes)
    dirty = Tokens(clean.q, clean.k.copy(), clean.v.copy())
    dirty.k[odd], dirty.v[odd] = np.nan, np.inf
    outs = [
        Step(Pool(sizes, options, pages=30), {0: tokens}, [Row(0, length, length)], length, 1).run()
        for tokens in (clean, dirty)
    ]
    past = odd + window if window else length
    for unseen in (slice(0, odd), slice(past, length)):
        np.testing.assert_array_equal(outs[0][unseen], outs[1][unseen])
    assert np.isnan(outs[1][odd:past]).all()


@pytest.mark.parametrize("at_end", [True, False], ids=["end", "begin"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", list(TYPES))
def test_nothing_outside_of_the_arrays_is_touched(kind: str, layout: str, at_end: bool) -> None:
    for sizes in (Sizes(heads=9, kv_heads=3, size=64, page=16), Sizes(size=6, page=3), Sizes(size=48, page=32)):
        options = Options(type=kind, layout=layout, rotate=True, norm=True, window=50)
        rng, rows = np.random.default_rng(0), [Row(0, 65, 65), Row(1, 33, 1), Row(2, 17, 4)]
        tokens = {row.name: Tokens.random(rng, row.length, sizes) for row in rows}
        pool = Pool(sizes, options, pages=sum(-(-row.length // sizes.page) for row in rows))
        for row in rows:
            before = prepared(tokens[row.name], options)
            pool.fill(row.name, before.k[: row.length - row.count], before.v[: row.length - row.count])
        step = Step(pool, tokens, rows, 70, 3, fence=lambda array: guarded(array, at_end=at_end))
        assert np.isfinite(step.run()).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("rotate", "norm"), [(True, False), (False, True), (True, True)])
def test_queries_and_keys_are_normed_and_rotated(layout: str, rotate: bool, norm: bool) -> None:
    options = Options(layout=layout, rotate=rotate, norm=norm)
    for sizes in (Sizes(), Sizes(heads=9, kv_heads=3, size=64, page=16), Sizes(size=6), Sizes(size=74)):
        run([(40, 1), (30, 30), (20, 3)], 40, 4, sizes, options, seed=5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", [False, True])
def test_a_part_of_each_head_is_rotated(layout: str, norm: bool) -> None:
    for size, pairs in ((64, 24), (80, 39), (6, 1)):
        options = Options(layout=layout, rotate=True, norm=norm, pairs=pairs)
        run([(40, 1), (30, 30), (20, 3)], 40, 4, Sizes(size=size, page=16), options, seed=5)


def test_a_single_row_of_a_single_token() -> None:
    run([(1, 1)], 1, 1)


def test_empty_rows_stay_empty_and_a_full_shape_has_no_padding() -> None:
    run([(5, 1), (6, 1)], 8, 8)
    run([(16, 16)], 16, 4)


def test_no_real_token_at_all() -> None:
    run([], 4, 2)


@pytest.mark.parametrize("seed", range(8))
def test_random_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = Sizes(
        kv_heads=(kv := int(rng.integers(1, 4))),
        heads=kv * int(rng.integers(1, 6)),
        size=int(rng.choice([2, 8, 16, 24, 33, 64])),
        page=int(rng.choice([1, 3, 8, 16, 32])),
    )
    lengths = rng.integers(1, 400, size=6)
    counts = [int(rng.integers(1, min(length, 50) + 1)) for length in lengths]
    rows = [(int(length), count) for length, count in zip(lengths, counts, strict=True)]
    options = Options(
        type=str(rng.choice(list(TYPES))),
        layout=str(rng.choice(LAYOUTS)),
        window=int(rng.choice([0, 11, 64])),
        soft_cap=float(rng.choice([0.0, 3.0])),
    )
    run(rows, 320, 8, sizes, options, seed=seed)


@pytest.mark.parametrize("options", [Options(sinks=True, layout="by_head"), Options(sinks=True, type="i8", window=9)])
def test_sinks_equal_float64(options: Options) -> None:
    """One row of a long context is divided among tiles: its sink is counted once."""
    run(DECODE, 4, 4, options=options)
    run(MIXED, 160, 8, options=options)


def test_large_scores_do_not_overflow() -> None:
    sizes, options = Sizes(), Options()
    sequence = Tokens.random(np.random.default_rng(0), 70, sizes)
    loud = Tokens(sequence.q * 300, sequence.k * 300, sequence.v)
    pool = Pool(sizes, options, pages=30)
    out = Step(pool, {0: loud}, [Row(0, 70, 70)], 70, 1).run()
    np.testing.assert_allclose(out, reference(loud, Row(0, 70, 70), options), atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 2}, "no such layer"),
        ({"type": list(TYPES).index("i8")}, "needs scales"),
        ({"layer": -1}, "no such layer"),
        ({"heads": 5}, "multiple of the KV heads"),
        ({"pages": 1}, "page that the cache does not have"),
        ({"pages_per_row": 2}, "longer than its page table"),
        ({"tokens": 3}, "more tokens than there are"),
        ({"starts": np.array([0, 5, 4], np.int32)}, "must not fall"),
        ({"starts": np.array([1, 5, 5], np.int32)}, "begin with 0"),
        ({"lengths": np.array([3, 0], np.int32)}, "shorter than its tokens"),
    ],
)
def test_a_call_that_cannot_be_right_is_refused_and_writes_nothing(changes: dict[str, object], message: str) -> None:
    pool = Pool(Sizes(), Options(), pages=8)
    sequence = Tokens.random(np.random.default_rng(0), 12, pool.sizes)
    with pytest.raises(ValueError, match=message):
        Step(pool, {0: sequence}, [Row(0, 12, 5)], 6, 2).run(**changes)
    assert np.isnan(pool.k).all()
    assert np.isnan(pool.v).all()
