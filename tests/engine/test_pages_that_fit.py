"""How many pages fit, and that the count stays the same while what is free changes a little."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from slipstream.engine.memory import CPU_KV_LIMIT, Budget, KVShape, pages_for
from slipstream.errors import OutOfMemory

KV = KVShape(layers=1, kv_heads=1, head_dim=8, page_size=16, dtype=np.dtype(np.float32))  # 1 KiB a page
KIB = 1024


def pages(free: int, **asked: Any) -> int:
    values: dict[str, Any] = {"most": 10**9, "least": 1, "kv_bytes": None, "most_kv_bytes": CPU_KV_LIMIT} | asked
    return pages_for(KV, Budget(free + 300, 200, 100), **values)


def test_enough_memory_gives_what_was_asked_for() -> None:
    assert pages(2 * CPU_KV_LIMIT) == CPU_KV_LIMIT // KIB
    assert pages(100_000 * KIB, most=777) == 777
    assert pages(100_000 * KIB, kv_bytes=1001 * KIB) == 1001


def test_little_memory_gives_counts_that_come_again() -> None:
    found = [pages(free * KIB) for free in range(10_000, 20_000)]
    assert len(set(found)) <= 32
    assert all(free * 15 / 16 <= count <= free for free, count in zip(range(10_000, 20_000), found, strict=True))


@pytest.mark.parametrize("least", [1, 990, 1001])
def test_one_sequence_of_the_length_asked_for_still_fits(least: int) -> None:
    assert least <= pages(1001 * KIB, least=least) <= 1001
    with pytest.raises(OutOfMemory, match="max-model-len"):
        pages(1001 * KIB, least=1002)


def test_an_accelerators_memory_is_taken_to_the_same_grid() -> None:
    limit = 10**9
    assert pages(5000 * KIB, most_kv_bytes=limit) == pages(4990 * KIB, most_kv_bytes=limit) == 4864
