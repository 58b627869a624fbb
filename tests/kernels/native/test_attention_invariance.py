"""A row's attention is the same to the last bit alone or in a batch, however its prompt is cut, on any thread count."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from tests.kernels.native.ragged_case import LAYER, Options, Pool, Row, Sizes, Step, Tokens, native

SIZES = Sizes(heads=6, kv_heads=2, size=32, page=16)
LENGTHS = {0: 700, 1: 65, 2: 1, 3: 256, 4: 300}
OPTIONS = [
    Options(layout="by_head", type="f16", rotate=True),
    Options(layout="by_token", type="bf16", window=100, soft_cap=3.0, norm=True),
    Options(layout="by_head", window=70, sinks=True),
    Options(layout="by_head", type="i8", rotate=True, norm=True),
    Options(layout="by_token", type="i8", window=90),
]


@pytest.fixture(params=["portable", "avx2", "avx512"], autouse=True)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[None]:
    native.slipstream_set_isa(ctypes.c_char_p(request.param.encode()))
    yield
    native.slipstream_set_isa(None)
    native.slipstream_set_threads(0)


def sequences(sizes: Sizes = SIZES) -> dict[int, Tokens]:
    rng = np.random.default_rng(7)
    return {name: Tokens.random(rng, length, sizes) for name, length in LENGTHS.items()}


def computed(
    steps: Sequence[Sequence[Row]], options: Options, sizes: Sizes = SIZES
) -> tuple[dict[int, np.ndarray], dict[int, tuple[np.ndarray, ...]]]:
    """What these steps give for each sequence, and the keys, values and scales they leave in the cache, as bits."""
    inputs = sequences(sizes)
    pool = Pool(sizes, options, pages=sum(-(-length // sizes.page) for length in LENGTHS.values()) + 2)
    outputs: dict[int, list[np.ndarray]] = {}
    for rows in steps:
        step = Step(pool, inputs, rows, sum(row.count for row in rows) + 3, len(rows) + 1)
        out = step.run()
        for i, row in enumerate(rows):
            outputs.setdefault(row.name, []).append(out[step.starts[i] : step.starts[i + 1]])
    kept = {}
    for name, pages in pool.owned.items():
        k, v = (x[LAYER, pages].reshape(-1, sizes.kv_heads, sizes.size)[: LENGTHS[name]] for x in (pool.k, pool.v))
        scales = (x[LAYER, pages].reshape(-1, sizes.kv_heads)[: LENGTHS[name]] for x in (pool.k_scale, pool.v_scale))
        kept[name] = tuple(x.view(f"u{x.itemsize}") for x in (k, v, *scales))
    return {name: np.concatenate(parts).view(np.uint32) for name, parts in outputs.items()}, kept


def whole(names: Sequence[int]) -> list[Row]:
    return [Row(name, LENGTHS[name], LENGTHS[name]) for name in names]


def cut(name: int, *counts: int) -> list[list[Row]]:
    """One step for each of `counts`, and single tokens after them."""
    ends = np.cumsum([*counts, *[1] * (LENGTHS[name] - sum(counts))])
    return [[Row(name, int(end), int(end - start))] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def assert_equal(left: tuple[dict, dict], right: tuple[dict, dict]) -> None:
    for name in left[0].keys() & right[0].keys():
        np.testing.assert_array_equal(left[0][name], right[0][name])
        for a, b in zip(left[1][name], right[1][name], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_row_does_not_know_its_batch(options: Options) -> None:
    together = computed([whole([0, 1, 2, 3, 4])], options)
    for name in LENGTHS:
        assert_equal(together, computed([whole([name])], options))
    assert_equal(together, computed([whole([4, 0]), whole([3, 2, 1])], options))


@pytest.mark.parametrize("options", OPTIONS)
def test_a_prompt_in_chunks_equals_a_whole_one_and_one_token_at_a_time(options: Options) -> None:
    at_once = computed([whole([0])], options)
    assert_equal(at_once, computed(cut(0, 100, 1, 255, 7, 64, 270), options))
    assert_equal(at_once, computed(cut(0, 511, 189), options))
    short = computed([whole([4])], options)
    assert_equal(short, computed(cut(4), options))


@pytest.mark.parametrize("options", OPTIONS)
def test_decoding_rows_beside_a_chunk(options: Options) -> None:
    mixed = [
        [Row(0, 650, 650), *whole([1])],
        [Row(0, 651, 1), *whole([2]), Row(3, 200, 200)],
        [Row(3, 201, 1), Row(0, 660, 9), *whole([4])],
        [Row(0, 700, 40), Row(3, 256, 55)],
    ]
    assert_equal(computed(mixed, options), computed([whole([0, 1, 2, 3, 4])], options))


@pytest.mark.parametrize("options", OPTIONS)
def test_the_number_of_threads(options: Options) -> None:
    steps = [whole([0]), [*whole([1, 3]), Row(4, 299, 299)], [Row(4, 300, 1)]]
    native.slipstream_set_threads(1)
    alone = computed(steps, options)
    for threads in (2, 3, 16):
        native.slipstream_set_threads(threads)
        assert_equal(alone, computed(steps, options))


@pytest.mark.parametrize("kind", ["f16", "i8"])
def test_layouts_and_page_sizes_of_one_type_agree(kind: str) -> None:
    at_once = computed([whole([0, 4])], Options(layout="by_head", type=kind, rotate=True))[0]
    for layout, page in (("by_token", 16), ("by_token", 5), ("by_head", 64), ("by_head", 1)):
        sizes = Sizes(heads=6, kv_heads=2, size=32, page=page)
        other = computed([whole([0, 4])], Options(layout=layout, type=kind, rotate=True), sizes)[0]
        for name, bits in at_once.items():
            np.testing.assert_array_equal(bits, other[name])
