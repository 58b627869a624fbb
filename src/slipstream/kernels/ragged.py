"""The arrays of one ragged step, and the paged KV cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from slipstream.parallel.spread import Heads, spec_of

Kernels = Literal["reference", "cpu", "pallas_tpu", "pallas_gpu", "cudnn"]
"""Which implementation computes attention, see `kernels.attention.IMPLEMENTATIONS`."""

Layout = Literal["by_token", "by_row", "by_head"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Paged keys and values, carried through the layer scan and donated by the step.

    `layout` by_token: `k` and `v` are [l, P, b, k, h]. by_row: [l, P, k, b, h], so that a head's keys are the rows of a
    matrix; the Pallas kernels read that. by_head: `k` is [l, P, k, h, b] and `v` [l, P, k, b, h], so that a vector
    register holds one element of neighbouring keys; only the native CPU kernels read that.
    `v` is None where a value is the first part of its key (latent attention).
    `heads`: where its heads lie, None on one device.
    A cache of int8 has a float32 scale for each token and KV head: `k_scale` and `v_scale`, [l, P, b, k] by_token and
    [l, P, k, b] otherwise; a number q stands for q * scale. Others have None.
    """

    k: Array
    v: Array | None
    layout: Layout = field(default="by_token", metadata={"static": True})
    k_scale: Array | None = None
    v_scale: Array | None = None
    heads: Heads | None = field(default=None, kw_only=True, metadata={"static": True})

    @classmethod
    def zeros(
        cls,
        layers: int,
        pages: int,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        dtype: jnp.dtype,
        layout: Layout = "by_token",
        *,
        values: bool = True,
    ) -> KVCache:
        """An empty cache. `values`: whether they are stored beside keys."""
        shapes = {
            "by_token": ((page_size, kv_heads, head_dim), (page_size, kv_heads, head_dim)),
            "by_row": ((kv_heads, page_size, head_dim), (kv_heads, page_size, head_dim)),
            "by_head": ((kv_heads, head_dim, page_size), (kv_heads, page_size, head_dim)),
        }
        stored = 2 if values else 1
        k, *v = (jnp.zeros((layers, pages, *shape), dtype) for shape in shapes[layout][:stored])
        if dtype != jnp.int8:
            return cls(k, v[0] if v else None, layout)
        scales = (page_size, kv_heads) if layout == "by_token" else (kv_heads, page_size)
        k_scale, *v_scale = (jnp.zeros((layers, pages, *scales), jnp.float32) for _ in range(stored))
        return cls(k, v[0] if v else None, layout, k_scale, v_scale[0] if v else None)

    @property
    def page_size(self) -> int:
        """Tokens in a page."""
        return self.k.shape[{"by_token": 2, "by_row": 3, "by_head": 4}[self.layout]]

    def specs(self) -> KVCache:
        """The PartitionSpec of each array, in place of it: of `heads`, or of one device."""
        axis = {"by_token": 3, "by_row": 2, "by_head": 2}[self.layout]
        kv = () if self.heads is None else self.heads.kv

        def of(array: Array) -> PartitionSpec:
            return spec_of(*(kv if i == axis else () for i in range(array.ndim)))

        return jax.tree.map(of, self)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Step:
    """Which packed token belongs where.

    `starts` i32[s+1]: first packed token of each row; `starts[-1]` is the number of real tokens, what follows is
    padding. `lengths` i32[s]: tokens in the cache after this step (0: an empty row). `pages` i32[s, p]: page tables.
    `rows` i32[t]: the row of each token, s for padding. `positions` i32[t]: its position in its sequence, 0 in padding.
    `real` i32[]: how many of the packed tokens are real; they come first.
    `decode_only`: a promise that the first `real` rows have one token each and the others none, so that kernels leave
    out what chunks need; there are as many tokens as rows.
    `kernels`: the implementation that the engine was configured for; `interpreted`: Pallas interprets
    it, on any device.
    """

    starts: Array
    lengths: Array
    pages: Array
    rows: Array
    positions: Array
    real: Array
    decode_only: bool = field(default=False, metadata={"static": True})
    kernels: Kernels = field(default="reference", metadata={"static": True})
    interpreted: bool = field(default=False, metadata={"static": True})

    @classmethod
    def of(
        cls,
        starts: Array,
        lengths: Array,
        pages: Array,
        tokens: int,
        *,
        decode_only: bool = False,
        kernels: Kernels = "reference",
        interpreted: bool = False,
    ) -> Step:
        """Derive rows and positions of `tokens` packed tokens from the ragged description."""
        index = np.arange(tokens, dtype=np.int32)
        real = index < starts[-1]
        if decode_only:
            row, positions = jnp.asarray(index), lengths - 1
        else:
            rows = jnp.searchsorted(starts, index, side="right").astype(jnp.int32) - 1
            row = jnp.minimum(rows, lengths.shape[0] - 1)
            count = starts[row + 1] - starts[row]
            positions = lengths[row] - count + index - starts[row]
        return cls(
            starts,
            lengths,
            pages,
            rows=jnp.where(real, row, lengths.shape[0]),
            positions=jnp.where(real, positions, 0).astype(jnp.int32),
            real=starts[-1],
            decode_only=decode_only,
            kernels=kernels,
            interpreted=interpreted,
        )

    @classmethod
    def whole(cls, tokens: int, page_size: int) -> Step:
        """One sequence of `tokens` tokens, at once, into pages 0, 1, ...: the full forward of tests and goldens."""
        pages = -(-tokens // page_size)
        return cls.of(
            jnp.array([0, tokens], jnp.int32),
            jnp.array([tokens], jnp.int32),
            jnp.arange(pages, dtype=jnp.int32)[None],
            tokens,
        )
