"""The memory of encoded texts: bounded, and least recently used first out."""

from __future__ import annotations

import numpy as np

from slipstream.diffusion.pipeline import Text
from slipstream.diffusion.texts import TextCache
from tests.diffusion.fakes import TRUE, engine, request, run


def made(text: str) -> Text:
    return Text(np.full((1, 4, 2), len(text), np.float32), np.zeros((1, 2), np.float32))  # 40 bytes


def test_least_recently_used_goes() -> None:
    cache = TextCache(100)
    first = cache.get("a", lambda: made("a"))
    cache.get("bb", lambda: made("bb"))
    assert cache.get("a", lambda: made("a")) is first
    cache.get("ccc", lambda: made("ccc"))
    assert cache.get("a", lambda: made("a")) is first
    assert (cache.hits, cache.misses, cache.bytes, len(cache)) == (2, 3, 80, 2)
    cache.get("bb", lambda: made("bb"))
    assert cache.misses == 4


def test_nothing_over_the_bound_is_kept() -> None:
    cache = TextCache(39)
    assert cache.get("a", lambda: made("a")).states.max() == 1
    assert (cache.bytes, len(cache)) == (0, 0)


def test_the_engine_encodes_a_text_once() -> None:
    one = engine(TRUE)
    run(one, [request(str(i), prompt="same", negative_prompt="other", seed=i) for i in range(3)])
    assert (one.counts().text_misses, one.counts().text_hits) == (2, 4)
