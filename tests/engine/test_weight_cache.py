"""Packed weights on disk: the same bytes, mapped; other files, other settings and damage mean packing again."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from slipstream.checkpoint import RandomSource, open_checkpoint, save_checkpoint
from slipstream.checkpoint.fingerprint import fingerprint
from slipstream.engine import weight_cache
from slipstream.engine.weight_cache import WeightCache
from slipstream.hardware.store import ALIGNMENT, Store
from slipstream.kernels.packed import Packed, Packing, any_packed
from slipstream.models.registry import family
from tests.engine import tiny

PACKING = Packing(("q8_0",), (("n", 16),), (("d", 32),))


def tree() -> dict[str, Any]:
    random = np.random.default_rng(1)
    data = random.integers(0, 255, PACKING.bounds[-1], np.uint8)
    return {
        "packed": Packed(jnp.array(data), jnp.int32(0), PACKING, "exact"),
        "norm": jnp.array(random.normal(size=(2, 40)).astype(np.float32)),
        "half": jnp.array(random.normal(size=7).astype(ml_dtypes.bfloat16)),
        "empty": jnp.zeros((0, 3), jnp.float16),
    }


def abstract(of: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), of)


def cache(folder: Path, files: int = 1, code: int = 1) -> WeightCache:
    return WeightCache(Store(folder, 2**30), [files], {"code": code})


@pytest.mark.parametrize("huge", [True, False])
def test_the_same_arrays_come_back(tmp_path: Path, huge: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_cache, "huge_pages_on_demand", lambda: huge)
    weights = tree()
    cache(tmp_path).keep(abstract(weights), weights)
    found = cache(tmp_path).read(abstract(weights), jax.devices()[0])
    assert found is not None
    assert jax.tree.structure(found) == jax.tree.structure(weights)
    for one, two in zip(jax.tree.leaves(weights), jax.tree.leaves(found), strict=True):
        assert one.dtype == two.dtype and one.shape == two.shape
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))
    assert _mapped(found["packed"].data) is not huge


def _mapped(array: jax.Array) -> bool:
    """Whether the array's memory is that of a mapped file of the cache."""
    place = array.unsafe_buffer_pointer()
    maps = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if ".kept" in line]
    ranges = [[int(end, 16) for end in one.split("-")] for one in maps]
    return any(start <= place < end for start, end in ranges)


def test_other_facts_kinds_and_shapes_are_not_found(tmp_path: Path) -> None:
    weights, device = tree(), jax.devices()[0]
    kept = cache(tmp_path)
    kept.keep(abstract(weights), weights)
    assert cache(tmp_path, files=2).read(abstract(weights), device) is None
    assert cache(tmp_path, code=2).read(abstract(weights), device) is None
    fast = weights | {"packed": replace(weights["packed"], precision="fast")}
    assert kept.read(abstract(fast), device) is None
    wider = abstract(weights) | {"norm": jax.ShapeDtypeStruct((2, 41), jnp.float32)}
    assert kept.read(wider, device) is None
    assert kept.read(abstract(weights), device) is not None


def test_what_other_code_packed_makes_room(tmp_path: Path) -> None:
    weights = tree()
    for files, code in ((1, 1), (2, 1), (1, 2)):
        cache(tmp_path, files, code).keep(abstract(weights), weights)
    found = [cache(tmp_path, *which).read(abstract(weights), jax.devices()[0]) for which in ((1, 1), (2, 1), (1, 2))]
    assert [one is not None for one in found] == [False, True, True]


@pytest.mark.parametrize("place", [ALIGNMENT + 5, -1])
def test_damaged_weights_are_not_used(tmp_path: Path, place: int) -> None:
    weights = tree()
    kept = cache(tmp_path)
    kept.keep(abstract(weights), weights)
    [path] = tmp_path.glob("*.kept")
    broken = bytearray(path.read_bytes())
    broken[place] ^= 4
    path.write_bytes(broken)
    assert kept.read(abstract(weights), jax.devices()[0]) is None


def test_a_tree_knows_whether_it_is_worth_keeping() -> None:
    assert any_packed(tree()) and any_packed(abstract(tree()))
    assert not any_packed({"norm": tree()["norm"]})


def test_a_fingerprint_follows_place_size_time_and_content(tmp_path: Path) -> None:
    chosen = family(tiny.CONFIG)
    plan = chosen.plan(chosen.from_hf(tiny.CONFIG))
    folder = tmp_path / "model"
    save_checkpoint(RandomSource(plan, 1), folder, tiny.CONFIG)
    checkpoint = open_checkpoint(folder)
    first = fingerprint(checkpoint)
    assert first is not None and first == fingerprint(open_checkpoint(folder))
    [path] = folder.glob("*.safetensors")
    data, time = path.read_bytes(), path.stat().st_mtime_ns

    os.utime(path, ns=(time, time + 1))
    assert fingerprint(checkpoint) != first
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(time, time))
    assert fingerprint(checkpoint) != first, "the last bytes are read"
    path.write_bytes(data + b"\0")
    os.utime(path, ns=(time, time))
    assert fingerprint(checkpoint) != first
    folder.rename(tmp_path / "moved")
    assert fingerprint(replace(checkpoint, path=tmp_path / "moved")) != first


def test_random_weights_have_no_fingerprint() -> None:
    assert fingerprint(tiny.checkpoint()) is None
