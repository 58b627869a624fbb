"""How many KV pages fit: from the compiled step's own memory analysis, not from a guess."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from slipstream.errors import OutOfMemory
from slipstream.hardware.host import read_host
from slipstream.kernels.ragged import Kernels, KVCache, Layout
from slipstream.parallel.spread import Heads

# On a CPU the cache shares the machine with everything else; this much holds 23,000 tokens of SmolLM2 in float32.
CPU_KV_LIMIT = 2**30


def kv_dtype(asked: str, dtype: np.dtype, platform: str) -> np.dtype:
    """The type of the KV cache: what was asked for, or for auto the platform's, beside activations of `dtype`.

    On a CPU float16 takes half of float32's memory and time to read it. On SmolLM2-135M the predictions of 4,515 tokens
    then differ from float32's by 4.5e-7 nats (KL, mean); bfloat16's by 2.6e-5, int8's by 6.1e-4.
    """
    if asked == "auto":
        return np.dtype(np.float16 if platform == "cpu" else dtype)
    return np.dtype(jnp.float8_e4m3fn if asked == "fp8" else jnp.dtype(asked))


LAYOUTS: dict[Kernels, Layout] = {
    "reference": "by_token",
    "cpu": "by_head",
    "pallas_tpu": "by_row",
    "pallas_gpu": "by_row",
    "cudnn": "by_row",
}
"""The layout that kernels read fastest."""

LATENT_LAYOUTS: dict[Kernels, Layout] = {
    "reference": "by_token",
    "cpu": "by_token",
    "pallas_tpu": "by_row",
    "pallas_gpu": "by_token",
    "cudnn": "by_token",
}
"""The same of caches without values."""


def row_size(head_dim: int, kernels: Kernels, *, latent: bool = False) -> int:
    """Numbers that a head takes in the cache: a TPU's rows are of 128 numbers, Triton's of a power of two.

    `latent`: the cache holds keys alone, which no kernel on a GPU reads.
    """
    if kernels == "pallas_tpu":
        return -(-head_dim // 128) * 128
    return 1 << (head_dim - 1).bit_length() if kernels in ("pallas_gpu", "cudnn") and not latent else head_dim


@dataclass(frozen=True)
class KVShape:
    """What decides the size of a page: `bytes_per_page` covers keys and values of all layers.

    `values`: whether they are stored; without, a value is a part of its key.
    `head_dim`: numbers that a head takes (`row_size`). `heads`: where the model's `kv_heads` lie, None on one device.
    """

    layers: int
    kv_heads: int
    head_dim: int
    page_size: int
    dtype: np.dtype
    values: bool = True
    heads: Heads | None = None

    @property
    def bytes_per_page(self) -> int:
        """Bytes of one page on one device, over all layers, keys and values."""
        scale = 4 if self.dtype == np.int8 else 0  # of each token and head
        stored = 2 if self.values else 1
        heads = self.kv_heads if self.heads is None else self.kv_heads // self.heads.kv_ways
        return stored * self.layers * self.page_size * heads * (self.head_dim * self.dtype.itemsize + scale)

    def cache(self, pages: int, kernels: Kernels) -> KVCache:
        """An empty cache in the layout that the kernels read fastest."""
        sixteens = self.page_size % 16 == 0 and self.head_dim % 16 == 0  # a vector of 16 keys, or of 16 elements
        layout = (LAYOUTS if self.values else LATENT_LAYOUTS)[kernels]
        if kernels == "cpu" and not sixteens:
            layout = "by_token"
        sizes = (self.layers, pages, self.page_size, self.kv_heads, self.head_dim)
        return replace(KVCache.zeros(*sizes, jnp.dtype(self.dtype), layout, values=self.values), heads=self.heads)


@dataclass(frozen=True)
class Budget:
    """Bytes on one device: `limit` may be used in all, `weights` and `temporaries` are spoken for."""

    limit: int
    weights: int
    temporaries: int

    @property
    def free(self) -> int:
        """What is left for the KV cache."""
        return self.limit - self.weights - self.temporaries


def device_limit(device: jax.Device, fraction: float, count: int = 1) -> int:
    """Bytes that the engine may use on a device: `fraction` of its memory.

    On a CPU, of what the process may use; `count` of its devices share that.
    """
    stats = device.memory_stats() if device.platform != "cpu" else None
    total = stats["bytes_limit"] if stats else read_host().memory_available // count
    return int(total * fraction)


def most_kv_bytes(device: jax.Device, count: int, limit: int) -> int:
    """The most of a device's `limit` that a KV cache may take unasked; `count` devices of a CPU share its memory."""
    return CPU_KV_LIMIT // count if device.platform == "cpu" else limit


def pages_for(kv: KVShape, budget: Budget, *, most: int, least: int, kv_bytes: int | None, most_kv_bytes: int) -> int:
    """Pages to allocate: at most `most` (all slots at full length), within `kv_bytes`, or else what the budget leaves
    and `most_kv_bytes`.

    Raises OutOfMemory where `kv_bytes` is more than is free, or fewer than `least` pages fit (one sequence of the
    length that was asked for).
    """
    if kv_bytes is not None and kv_bytes > budget.free:
        raise OutOfMemory(
            f"KV cache of {gib(kv_bytes)} asked for, {gib(budget.free)} free beside {gib(budget.weights)} of weights "
            f"and {gib(budget.temporaries)} of temporaries: lower --kv-bytes or raise --memory-fraction"
        )
    allowed = kv_bytes if kv_bytes is not None else min(budget.free, most_kv_bytes)
    pages = min(most, allowed // kv.bytes_per_page)
    if kv_bytes is None and budget.free <= most_kv_bytes and pages < most:
        # What is free differs a little at every start; the pages are part of a compiled step's shape, and one that an
        # earlier start kept should fit this one.
        pages = max(min(pages, least), _rounded_down(pages))
    if pages < 1:
        raise OutOfMemory(
            f"a KV page takes {gib(kv.bytes_per_page)}, {gib(max(allowed, 0))} are free beside {gib(budget.weights)} "
            f"of weights and {gib(budget.temporaries)} of temporaries: raise --memory-fraction or --kv-bytes, or "
            "choose a smaller model"
        )
    if pages < least:
        raise OutOfMemory(
            f"one sequence of {least * kv.page_size} tokens needs {gib(least * kv.bytes_per_page)} of KV cache, "
            f"{gib(pages * kv.bytes_per_page)} fit: lower --max-model-len to {pages * kv.page_size}, or raise "
            "--kv-bytes or --memory-fraction"
        )
    return pages


def _rounded_down(count: int) -> int:
    """At most a sixteenth less, so that few different counts are left."""
    step = 1 << max(0, count.bit_length() - 5)
    return count // step * step


def gib(size: int) -> str:
    """A size for people: 1.50 GiB, 12.3 MiB."""
    return f"{size / 2**30:.2f} GiB" if abs(size) >= 2**30 else f"{size / 2**20:.1f} MiB"
