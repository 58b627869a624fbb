"""Packed weights on disk: the next start takes them from there in place of packing again.

What is kept are the arrays of the tree of weights by their places in it, so nothing here knows how a leaf is packed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from slipstream.checkpoint.loading import empty
from slipstream.hardware.allocator import huge_pages_on_demand
from slipstream.hardware.store import Store, name_of


@dataclass(frozen=True)
class WeightCache:
    """The weights of one checkpoint. `files` names its content, `packing` the code that packs it; both are JSON values.

    Of one content, what another code packed is removed when the weights are kept: a model has one copy here.
    """

    store: Store
    files: Any
    packing: Mapping[str, Any]

    def read(self, abstract: Any, device: jax.Device) -> Any | None:
        """The tree with the arrays that were kept, shaped as `abstract`; None where there are none.

        The file is mapped. Where the system has huge pages on demand, the arrays move into such, part by part: products
        read them so much faster (docs/adr/0006-warm-starts.md) that the copy pays within a second of work. Elsewhere,
        on a CPU, they are views of the mapped file and nothing is copied.
        """
        entry = self.store.read(self._names(abstract)[1])
        if entry is None:
            return None
        leaves, tree = jax.tree_util.tree_flatten_with_path(abstract)
        arrays, huge = [], huge_pages_on_demand()
        for path, leaf in leaves:
            part = entry.parts.get(jax.tree_util.keystr(path))
            if part is None or part.nbytes != leaf.size * leaf.dtype.itemsize:
                return None
            host = np.frombuffer(part, np.uint8) if part.nbytes else np.empty(0, np.uint8)
            if huge:
                host = _copied(host)
            arrays.append(jax.device_put(host.view(leaf.dtype).reshape(leaf.shape), device))
        return jax.tree.unflatten(tree, arrays)

    def keep(self, abstract: Any, weights: Any) -> None:
        """Keep the arrays of a tree that `abstract` describes."""
        leaves, _ = jax.tree_util.tree_flatten_with_path(weights)
        parts = {jax.tree_util.keystr(path): _bytes(leaf) for path, leaf in leaves}
        content, name = self._names(abstract)
        if self.store.write(name, {}, parts):
            self.store.remove_others(content, name)

    def _names(self, abstract: Any) -> tuple[str, str]:
        """The name of the content, and of this packing of it, which begins with that."""
        leaves, tree = jax.tree.flatten(abstract)
        shapes = [[list(leaf.shape), str(leaf.dtype)] for leaf in leaves]
        content = name_of("weights", {"files": self.files, "tree": str(tree), "shapes": shapes})
        return content, name_of(content, self.packing)


def _copied(host: np.ndarray) -> np.ndarray:
    """The same bytes in memory that numpy asks the system to back with huge pages, and that XLA:CPU adopts."""
    copy = empty(host.shape, host.dtype)
    copy[...] = host
    return copy


def _bytes(leaf: jax.Array) -> memoryview:
    raw: Any = np.asarray(leaf).reshape(-1).view(np.uint8)
    return memoryview(raw)
