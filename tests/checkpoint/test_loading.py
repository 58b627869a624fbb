from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from slipstream.checkpoint import RandomSource, check, load, open_checkpoint, save_checkpoint
from slipstream.checkpoint.loading import empty
from slipstream.errors import CheckpointError
from slipstream.spec.param import Axis, Param, param, params, stacked
from slipstream.spec.source import Blocks

D, F, N, H, V = (
    Axis("embed", "d", 8),
    Axis("hidden", "f", 12),
    Axis("heads", "n", 2),
    Axis("head", "h", 4),
    Axis("vocab", "v", 10),
)


@dataclass(frozen=True)
class Block:
    wq: Any
    up: Any
    norm: Any
    bias: Any = None


@dataclass(frozen=True)
class Weights:
    embed: Any
    blocks: Any
    norm: Any


def block(at: str) -> Block:
    return Block(
        wq=param(D | N | H, at + "q.weight", "(n h) d -> d n h", contract=("embed",)),
        up=param(D | F, at + "up.weight", "f d -> d f", contract=("embed",)),
        norm=param(D, at + "norm.weight", init="zeros", offset=1.0),
    )


def plan(layers: int = 3) -> Weights:
    return Weights(
        embed=param(V | D, "embed.weight"), blocks=stacked(layers, block), norm=param(D, "norm.weight", init="ones")
    )


class Held:
    """A Source over a dict."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.tensors = tensors
        self.stored: dict[str, Blocks] = {}
        self.reads: list[str] = []

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def read(self, name: str) -> np.ndarray:
        self.reads.append(name)
        return self.tensors[name]

    def blocks(self, name: str) -> Blocks | None:
        return self.stored.get(name)


def held(tree: Any = None, **options: Any) -> Held:
    source = RandomSource(tree or plan(), 1, **options)
    return Held({name: source.read(name) for name in source.names()})


def keep(_: Param, __: str, array: np.ndarray) -> np.ndarray:
    return array


def test_layout_layers_and_offset() -> None:
    source = held()
    weights = load(plan(), source, keep)
    assert isinstance(weights, Weights)
    assert isinstance(weights.blocks, Block)
    assert weights.blocks.bias is None
    assert weights.blocks.wq.shape == (3, 8, 2, 4)
    for layer in range(3):
        stored = source.tensors[f"model.layers.{layer}.q.weight"]
        for n in range(2):
            for h in range(4):
                np.testing.assert_array_equal(weights.blocks.wq[layer, :, n, h], stored[n * 4 + h])
        np.testing.assert_array_equal(weights.blocks.up[layer], source.tensors[f"model.layers.{layer}.up.weight"].T)
        np.testing.assert_array_equal(
            weights.blocks.norm[layer], source.tensors[f"model.layers.{layer}.norm.weight"] + np.float32(1)
        )
    np.testing.assert_array_equal(weights.embed, source.tensors["embed.weight"])


def test_place_gets_each_leaf_once_with_its_path_and_its_result_is_kept() -> None:
    seen: list[tuple[str, tuple[int, ...]]] = []

    def place(leaf: Param, path: str, array: np.ndarray) -> str:
        assert array.shape == leaf.shape
        seen.append((path, array.shape))
        return path

    weights = load(plan(), held(), place)
    assert seen == [(path, leaf.shape) for path, leaf in params(plan())]
    assert (weights.embed, weights.blocks.norm) == ("embed", "blocks.norm")


def test_bfloat16_stays_and_an_offset_is_added_in_float32() -> None:
    weights = load(plan(), held(dtype=np.dtype(ml_dtypes.bfloat16)), keep)
    assert weights.blocks.wq.dtype == ml_dtypes.bfloat16
    assert weights.blocks.norm.dtype == np.float32
    small = np.full(8, 2.0**-10, ml_dtypes.bfloat16)  # 1 + 2^-10 is not a bfloat16
    tree = param(D, "w", offset=1.0)
    assert load(tree, Held({"w": small}), keep).tolist() == [1 + 2.0**-10] * 8


def test_layers_stored_in_different_dtypes_become_float32() -> None:
    source = held(dtype=np.dtype(np.float16))
    name = "model.layers.2.up.weight"
    source.tensors[name] = source.tensors[name].astype(np.float32) + np.float32(1e-6)
    weights = load(plan(), source, keep)
    assert weights.blocks.up.dtype == np.float32
    np.testing.assert_array_equal(weights.blocks.up[2], source.tensors[name].T)
    np.testing.assert_array_equal(weights.blocks.up[0], source.tensors["model.layers.0.up.weight"].T)


def test_what_is_handed_over_is_aligned_for_xla() -> None:
    weights = load(plan(), held(), keep)
    for array in (weights.blocks.wq, weights.blocks.up, weights.blocks.norm):
        assert array.ctypes.data % 64 == 0
        assert array.flags.c_contiguous
    assert empty((3, 5), np.dtype(np.float16)).shape == (3, 5)


def test_progress_counts_weights() -> None:
    calls: list[tuple[str, int, int | None]] = []
    load(plan(), held(), keep, progress=lambda stage, done, total: calls.append((stage, done, total)))
    total = sum(leaf.size for _, leaf in params(plan()))
    assert calls[0] == ("load weights", 0, total)
    assert calls[-1] == ("load weights", total, total)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


def test_one_error_lists_everything_and_nothing_was_read() -> None:
    source = held()
    del source.tensors["norm.weight"], source.tensors["model.layers.1.q.weight"]
    source.tensors["embed.weight"] = np.zeros((11, 8), np.float32)
    source.tensors["model.layers.0.mystery"] = np.zeros(1, np.float32)
    source.tensors["\x1b[31mred"] = np.zeros(1, np.float32)
    with pytest.raises(CheckpointError) as caught:
        load(plan(), source, keep)
    assert str(caught.value).splitlines() == [
        "The checkpoint does not fit its model:",
        "  2 tensors are missing:",
        "    model.layers.1.q.weight",
        "    norm.weight",
        "  2 tensors are not read by the model:",
        "    '\\x1b[31mred'",
        "    model.layers.0.mystery",
        "  1 tensor is of another shape:",
        "    embed.weight: (11, 8) in the checkpoint, (10, 8) by the config",
    ]
    assert source.reads == []


def test_long_lists_are_shortened_and_layers_are_in_order() -> None:
    with pytest.raises(CheckpointError) as caught:
        check(plan(12), held(plan(2)))
    lines = str(caught.value).splitlines()
    assert lines[1] == "  30 tensors are missing:"
    assert lines[2] == "    model.layers.2.norm.weight"
    assert lines[-1] == "    ... and 18 more"


def test_tensors_that_may_stay_unread() -> None:
    source = held()
    for name in ("lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "rope_freqs.weight"):
        source.tensors[name] = np.zeros(3, np.float32)
    check(plan(), source)
    source.tensors["vision_tower.patch"] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError, match=r"vision_tower\.patch"):
        check(plan(), source)
    check(plan(), source, allowed_unused=["vision_tower.*"])


def test_random_weights_depend_on_seed_and_name_alone() -> None:
    one, two, other = RandomSource(plan(), 1), RandomSource(plan(5), 1), RandomSource(plan(), 2)
    name = "model.layers.2.up.weight"
    np.testing.assert_array_equal(one.read(name), two.read(name))
    assert not np.array_equal(one.read(name), other.read(name))
    assert not np.array_equal(one.read(name), one.read("model.layers.1.up.weight"))


def test_random_weights_have_sensible_sizes() -> None:
    wide = param(Axis("embed", "d", 400) | F, "w", "f d -> d f", contract=("embed",))
    assert RandomSource(wide).read("w").std() == pytest.approx(1 / 20, rel=0.05)
    assert RandomSource(wide).read("w").shape == (12, 400)
    source = RandomSource(plan(), jitter=0.0)
    assert source.read("norm.weight").tolist() == [1.0] * 8
    assert source.read("model.layers.0.norm.weight").tolist() == [0.0] * 8
    assert RandomSource(plan()).read("norm.weight").std() == pytest.approx(0.1, rel=0.9)


def test_a_saved_checkpoint_opens_and_loads_the_same(tmp_path: Path) -> None:
    source = RandomSource(plan(), dtype=np.dtype(ml_dtypes.bfloat16))
    save_checkpoint(source, tmp_path / "model", {"model_type": "test"})
    checkpoint = open_checkpoint(tmp_path / "model")
    assert checkpoint.config == {"model_type": "test"}
    assert checkpoint.tokenizer is None
    ours, theirs = load(plan(), source, keep), load(plan(), checkpoint.source, keep)
    np.testing.assert_array_equal(ours.blocks.wq, theirs.blocks.wq)
    np.testing.assert_array_equal(ours.embed, theirs.embed)


def test_a_saved_checkpoint_is_what_the_safetensors_package_reads(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    source = held()
    save_checkpoint(source, tmp_path, {})
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == source.tensors.keys()
    for name, value in source.tensors.items():
        np.testing.assert_array_equal(found[name], value)


def test_blocks_are_offered_first_and_what_is_declined_is_read() -> None:
    source = held()
    name = "embed.weight"
    source.stored[name] = Blocks("Q8_0", source.shape(name), lambda: np.zeros(0, np.uint8))
    offered: list[tuple[Param, list[Blocks | None]]] = []

    def place_blocks(leaf: Param, blocks: Sequence[Blocks | None]) -> str | None:
        offered.append((leaf, list(blocks)))
        return "packed" if blocks == [source.stored[name]] else None

    tree = load(plan(), source, lambda leaf, path, array: array, place_blocks=place_blocks)
    assert tree.embed == "packed"
    assert isinstance(tree.norm, np.ndarray)
    assert name not in source.reads
    assert [leaf for leaf, _ in offered] == [leaf for _, leaf in params(plan())]
    assert all(len(blocks) == len(leaf.names) for leaf, blocks in offered)
