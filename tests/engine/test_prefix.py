from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.engine.pages import PagePool
from slipstream.engine.prefix import PrefixCache, PrefixMatch


def filled(tokens: list[int], *, page_size: int = 4, num_pages: int = 8) -> tuple[PagePool, PrefixCache, list[int]]:
    """A cache that knows the full blocks of `tokens`, in pages that nobody holds."""
    pool = PagePool(num_pages)
    cache = PrefixCache(pool, page_size)
    hashes: list[bytes] = []
    cache.extend(hashes, tokens)
    pages = pool.allocate(len(hashes))
    assert pages is not None
    for page, digest in zip(pages, hashes, strict=True):
        assert cache.register(page, digest)
    pool.release(pages)
    return pool, cache, pages


def match(cache: PrefixCache, tokens: list[int], salt: bytes = b"") -> PrefixMatch | None:
    hashes: list[bytes] = []
    cache.extend(hashes, tokens, salt=salt)
    return cache.match(hashes, len(tokens))


def test_the_longest_known_beginning_is_found() -> None:
    _, cache, pages = filled(list(range(12)))
    assert match(cache, [*range(12), 99]) == PrefixMatch(tuple(pages), 12)
    assert match(cache, [*range(9), 99, 99, 99, 99]) == PrefixMatch(tuple(pages[:2]), 8)
    assert match(cache, [99, *range(1, 12)]) is None
    assert match(cache, []) is None
    assert match(cache, [0, 1, 2]) is None


def test_never_the_whole_prompt() -> None:
    _, cache, pages = filled(list(range(12)))
    assert match(cache, list(range(12))) == PrefixMatch(tuple(pages[:2]), 8)
    assert match(cache, list(range(4))) is None
    assert match(cache, list(range(5))) == PrefixMatch(tuple(pages[:1]), 4)


def test_a_block_counts_only_behind_the_blocks_it_was_computed_behind() -> None:
    _, cache, _ = filled([1, 1, 1, 1, 2, 2, 2, 2])
    assert match(cache, [2, 2, 2, 2, 0]) is None
    assert match(cache, [3, 3, 3, 3, 2, 2, 2, 2, 0]) is None


def test_block_borders_do_not_blur() -> None:
    """Tokens are hashed at a fixed width: (1, 23) is not (12, 3)."""
    cache = PrefixCache(PagePool(1), 2)
    digests = set()
    for tokens in ([1, 23], [12, 3], [123, 0], [0, 123], [1 << 16, 1], [1, 1 << 16], [2**32 - 1, 0]):
        hashes: list[bytes] = []
        cache.extend(hashes, tokens)
        digests.add(hashes[0])
    assert len(digests) == 7


def test_salts_keep_apart() -> None:
    pool = PagePool(2)
    cache = PrefixCache(pool, 2)
    hashes: list[bytes] = []
    cache.extend(hashes, [5, 6], salt=b"adapter-1")
    (page,) = pool.allocate(1) or []
    cache.register(page, hashes[0])
    assert match(cache, [5, 6, 7], salt=b"adapter-1") == PrefixMatch((page,), 2)
    assert match(cache, [5, 6, 7]) is None
    assert match(cache, [5, 6, 7], salt=b"adapter-2") is None


def test_equal_blocks_keep_one_entry() -> None:
    pool, cache, pages = filled([1, 2, 3, 4])
    hashes: list[bytes] = []
    cache.extend(hashes, [1, 2, 3, 4])
    (other,) = pool.allocate(1) or []
    assert not cache.register(other, hashes[0])
    assert len(cache) == 1
    pool.release([other])
    assert (pool.cached, pool.free) == (1, 7), "the second copy is not kept"
    assert match(cache, [1, 2, 3, 4, 5]) == PrefixMatch(tuple(pages), 4)


def test_a_page_holds_one_block() -> None:
    pool = PagePool(1)
    cache = PrefixCache(pool, 1)
    hashes: list[bytes] = []
    cache.extend(hashes, [1, 2])
    pool.allocate(1)
    cache.register(0, hashes[0])
    with pytest.raises(ValueError, match="page 0 holds another block"):
        cache.register(0, hashes[1])


def test_eviction_forgets_from_the_end() -> None:
    pool, cache, pages = filled(list(range(12)), num_pages=3)
    taken = pool.allocate(1)
    assert taken == [pages[2]]
    assert match(cache, list(range(13))) == PrefixMatch(tuple(pages[:2]), 8)
    pool.allocate(2)
    assert match(cache, list(range(13))) is None
    assert len(cache) == 0


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 5), st.data())
def test_hashes_grow_with_the_tokens(tokens: list[int], page_size: int, data: st.DataObject) -> None:
    cache = PrefixCache(PagePool(1), page_size)
    whole: list[bytes] = []
    cache.extend(whole, tokens)
    parts: list[bytes] = []
    for cut in sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=5))):
        cache.extend(parts, tokens[:cut])
        assert len(parts) == cut // page_size
    cache.extend(parts, tokens)
    assert parts == whole
    assert len(set(whole)) == len(whole), "equal blocks at different places have different names"


@given(st.lists(st.integers(0, 1), min_size=1, max_size=24), st.lists(st.integers(0, 1), min_size=1, max_size=24))
def test_a_match_is_the_common_prefix_in_whole_blocks(known: list[int], asked: list[int]) -> None:
    _, cache, pages = filled(known, page_size=2, num_pages=12)
    common = next(
        (i for i, (a, b) in enumerate(zip(known, asked, strict=False)) if a != b), min(len(known), len(asked))
    )
    blocks = min(common, len(asked) - 1) // 2
    assert match(cache, asked) == (PrefixMatch(tuple(pages[:blocks]), 2 * blocks) if blocks else None)
