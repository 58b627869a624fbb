from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.engine.pages import PagePool


def test_pages_are_given_once_and_come_back() -> None:
    pool = PagePool(4)
    first = pool.allocate(3)
    assert first is not None and sorted(first) == [0, 1, 2]
    assert (pool.used, pool.cached, pool.free, pool.available) == (3, 0, 1, 1)
    assert pool.allocate(2) is None
    assert pool.free == 1, "a refused allocation changes nothing"
    pool.release(first)
    assert (pool.used, pool.free) == (0, 4)
    again = pool.allocate(4)
    assert again is not None and sorted(again) == [0, 1, 2, 3]


def test_nothing_is_allocated_for_nothing() -> None:
    pool = PagePool(1)
    assert pool.allocate(0) == []
    assert pool.allocate(1) == [0]
    assert pool.allocate(0) == []


def test_a_shared_page_is_free_when_the_last_holder_lets_go() -> None:
    pool = PagePool(1)
    pages = pool.allocate(1)
    assert pages is not None
    pool.retain(pages)
    assert pool.references(0) == 2
    pool.release(pages)
    assert (pool.used, pool.free) == (1, 0)
    pool.release(pages)
    assert (pool.used, pool.free) == (0, 1)


def test_kept_pages_are_cached_and_evicted_oldest_first_after_the_free_ones() -> None:
    pool = PagePool(4)
    evicted: list[int] = []
    pool.call_when_evicted(evicted.append)
    pages = pool.allocate(3)
    assert pages is not None
    a, b, c = pages
    for page in pages:
        pool.keep(page)
    pool.release([b])
    pool.release([a, c])  # c before a: the end of a prefix goes first
    assert (pool.used, pool.cached, pool.free) == (0, 3, 1)
    assert pool.allocate(1) == [3] and evicted == []
    assert pool.allocate(2) == [b, c] and evicted == [b, c]
    pool.retain([a])
    assert pool.allocate(1) is None
    pool.release([a])
    assert pool.allocate(1) == [a] and evicted == [b, c, a]
    pool.release([a])
    assert pool.free == 1, "an evicted page is no longer kept"


def test_retaining_a_cached_page_saves_it_from_eviction_and_makes_it_recent() -> None:
    pool = PagePool(2)
    pages = pool.allocate(2)
    assert pages is not None
    for page in pages:
        pool.keep(page)
        pool.release([page])
    pool.retain([pages[0]])
    pool.release([pages[0]])
    assert pool.allocate(1) == [pages[1]]


def test_misuse_is_an_error() -> None:
    pool = PagePool(1)
    with pytest.raises(ValueError, match="page 0 is not held"):
        pool.release([0])
    with pytest.raises(ValueError, match="page 0 is free"):
        pool.retain([0])
    with pytest.raises(ValueError, match="page 0 is not held"):
        pool.keep(0)
    with pytest.raises(ValueError, match="at least one page"):
        PagePool(0)


@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.sampled_from(["allocate", "retain", "release", "keep"]), st.integers(0, 11))),
)
def test_every_page_is_in_exactly_one_state(num_pages: int, calls: list[tuple[str, int]]) -> None:
    pool = PagePool(num_pages)
    evicted: list[int] = []
    pool.call_when_evicted(evicted.append)
    holders: list[int] = []
    kept: set[int] = set()
    for call, number in calls:
        if call == "allocate":
            before = set(holders)
            pages = pool.allocate(number)
            assert (pages is None) == (number > num_pages - len(before))
            assert len(set(pages or [])) == len(pages or []) and before.isdisjoint(pages or [])
            assert set(evicted) <= set(pages or []) & kept, "only pages that are given out lose their content"
            kept -= set(evicted)
            evicted.clear()
            holders += pages or []
        elif holders:
            page = holders[number % len(holders)]
            if call == "retain":
                pool.retain([page])
                holders.append(page)
            elif call == "release":
                pool.release([page])
                holders.remove(page)
            else:
                pool.keep(page)
                kept.add(page)
        assert [pool.references(page) for page in range(num_pages)] == [
            holders.count(page) for page in range(num_pages)
        ]
        assert pool.used == len(set(holders))
        assert pool.cached == len(kept - set(holders))
        assert pool.used + pool.cached + pool.free == num_pages
