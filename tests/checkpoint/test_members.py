"""A weight whose every expert is a tensor of its own: read into one leaf, whether or not layers are stacked too."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import pytest

from slipstream.checkpoint import RandomSource, load
from slipstream.checkpoint.loading import check, empty, read
from slipstream.errors import CheckpointError
from slipstream.kernels.packed import packing_of
from slipstream.spec.param import Axis, Param, param, stacked
from slipstream.spec.source import Blocks, Source

E, D, F = Axis("expert", "e", 4), Axis("embed", "d", 8), Axis("mlp", "f", 6)
LAYERS = 3


def gate(at: str) -> Param:
    return param(D | F, at + "experts.{}.w1", "f d -> d f", contract=("embed",), each=E)


@dataclass
class Watched:
    """A source that remembers what was read, and may lack some tensors."""

    source: Source
    without: Collection[str] = ()
    asked: list[str] = field(default_factory=list)

    def names(self) -> Collection[str]:
        return set(self.source.names()) - set(self.without)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(name)

    def read(self, name: str) -> np.ndarray:
        self.asked.append(name)
        return self.source.read(name)

    def blocks(self, name: str) -> Blocks | None:
        return None


def test_experts_of_one_layer() -> None:
    leaf = gate("")
    source = RandomSource(leaf)
    assert leaf.shape == (4, 8, 6)
    assert [axis.role for axis in leaf.axes] == ["expert", "embed", "mlp"]
    assert leaf.stored_shape == (6, 8)
    found = read(leaf, source)
    for e in range(4):
        np.testing.assert_array_equal(found[e], source.read(f"experts.{e}.w1").T)


def test_experts_of_stacked_layers() -> None:
    """Each tensor is read once, in order, into one array; nothing is read before every name is known to be there."""
    leaf = stacked(range(2, 2 + LAYERS), gate)
    source = Watched(RandomSource(leaf))
    assert leaf.shape == (LAYERS, 4, 8, 6)
    found = load(leaf, source, lambda _param, _path, array: array)
    assert source.asked == [f"model.layers.{2 + i}.experts.{e}.w1" for i in range(LAYERS) for e in range(4)]
    assert found.ctypes.data % 64 == 0
    for i, e in np.ndindex(LAYERS, 4):
        np.testing.assert_array_equal(found[i, e], source.source.read(f"model.layers.{2 + i}.experts.{e}.w1").T)


def test_all_missing_experts_are_one_error() -> None:
    leaf = stacked(LAYERS, gate)
    lost = [f"model.layers.1.experts.{e}.w1" for e in (1, 3)] + ["model.layers.2.experts.0.w1"]
    source = Watched(RandomSource(leaf), lost)
    with pytest.raises(CheckpointError, match="3 tensors are missing") as error:
        check(leaf, source)
    assert all(name in str(error.value) for name in lost)
    assert not source.asked


def test_native_kernels_get_every_expert_as_it_is_stored() -> None:
    leaf = stacked(LAYERS, gate)
    source = RandomSource(leaf)
    blocks = [Blocks("F32", (6, 8), lambda name=name: source.read(name).view(np.uint8)) for name in leaf.names]  # type: ignore[misc]
    packing = packing_of(leaf, blocks)
    assert packing is not None
    assert len(packing.kinds) == LAYERS * 4
    assert packing.strides == (4, 1)
    packing.pack(blocks, empty((packing.bounds[-1],), np.dtype(np.uint8)))


def test_init_and_scale_of_random_experts() -> None:
    source = RandomSource(gate(""))
    values = np.stack([source.read(name) for name in source.names()])
    assert len({value.tobytes() for value in values}) == 4
    assert 0.5 < values.std() * 8**0.5 < 1.5
