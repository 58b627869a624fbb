"""A ragged step in numpy: rows of random sequences in pages of their own, and the native attention over them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np

from slipstream.kernels.native.library import library

native = library()
assert native is not None, "build the native library first (see CONTRIBUTING.md)"
native.slipstream_attend.restype = ctypes.c_char_p
native.slipstream_isa.restype = ctypes.c_char_p

TYPES = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "i8": np.dtype(np.int8),
}
UNTOUCHED = -128  # of a cache of int8: no number is rounded to that
LAYOUTS = ("by_token", "by_head")
LAYERS, LAYER = 2, 1
NORM_EPS, NORM_OFFSET = 1e-3, 1.0


class HeadNorm(ctypes.Structure):
    """`struct HeadNorm` of attention.h."""

    _fields_ = [("weight", ctypes.c_void_p), ("eps", ctypes.c_float), ("offset", ctypes.c_float)]


class Call(ctypes.Structure):
    """`struct Attention` of attention.h."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ["tokens", "heads", "kv_heads", "size", "rows", "pages_per_row"]],
        *[(name, ctypes.c_int64) for name in ["layers", "pages", "page_size", "layer"]],
        *[(name, ctypes.c_void_p) for name in ["q", "k", "v"]],
        *[(name, ctypes.c_int64) for name in ["q_stride", "k_stride", "v_stride"]],
        *[(name, HeadNorm) for name in ["q_norm", "k_norm"]],
        *[(name, ctypes.c_void_p) for name in ["cos", "sin"]],
        ("pairs", ctypes.c_int64),
        *[(name, ctypes.c_void_p) for name in ["cache_k", "cache_v", "k_scale", "v_scale"]],
        *[(name, ctypes.c_int) for name in ["type", "layout"]],
        *[(name, ctypes.c_void_p) for name in ["starts", "lengths", "page_table"]],
        ("scale", ctypes.c_float),
        ("window", ctypes.c_int64),
        ("soft_cap", ctypes.c_float),
        ("sinks", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
    ]


@dataclass(frozen=True)
class Sizes:
    heads: int = 6
    kv_heads: int = 2
    size: int = 8
    page: int = 4

    @property
    def scale(self) -> float:
        return self.size**-0.5


@dataclass(frozen=True)
class Tokens:
    """One whole sequence: q [length, n, h]; k, v [length, k, h]."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray

    @staticmethod
    def random(rng: np.random.Generator, length: int, sizes: Sizes) -> Tokens:
        q = rng.normal(size=(length, sizes.heads, sizes.size)).astype(np.float32)
        k, v = rng.normal(size=(2, length, sizes.kv_heads, sizes.size)).astype(np.float32)
        return Tokens(q, k, v)


@dataclass(frozen=True)
class Options:
    type: str = "f32"
    layout: str = "by_token"
    window: int = 0
    soft_cap: float = 0.0
    rotate: bool = False
    pairs: int | None = None  # that are rotated; None: the whole head
    norm: bool = False  # of the heads of q and k
    sinks: bool = False


@dataclass
class Pool:
    """A paged cache, NaN wherever nothing was written. Keys and values are seen as [l, P, b, k, h] in both layouts."""

    sizes: Sizes
    options: Options
    pages: int
    free: list[int] = field(default_factory=list)
    owned: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        s = self.sizes
        by_token = (LAYERS, self.pages, s.page, s.kv_heads, s.size)
        k_shape, v_shape = by_token, by_token
        if self.options.layout == "by_head":
            k_shape = (LAYERS, self.pages, s.kv_heads, s.size, s.page)
            v_shape = (LAYERS, self.pages, s.kv_heads, s.page, s.size)
        nothing = UNTOUCHED if self.options.type == "i8" else np.nan
        self.raw_k = np.full(k_shape, nothing, TYPES[self.options.type])
        self.raw_v = np.full(v_shape, nothing, TYPES[self.options.type])
        scales = k_shape[:3] + k_shape[4:] if self.options.layout == "by_head" else by_token[:4]
        self.raw_k_scale, self.raw_v_scale = np.full((2, *scales), np.nan, np.float32)
        self.free = list(range(self.pages - 1, -1, -1))  # page 0 is in use from the first row on

    @property
    def k(self) -> np.ndarray:
        return self.raw_k.transpose(0, 1, 4, 2, 3) if self.options.layout == "by_head" else self.raw_k

    @property
    def v(self) -> np.ndarray:
        return self.raw_v.transpose(0, 1, 3, 2, 4) if self.options.layout == "by_head" else self.raw_v

    @property
    def k_scale(self) -> np.ndarray:
        return self.raw_k_scale.swapaxes(2, 3) if self.options.layout == "by_head" else self.raw_k_scale

    @property
    def v_scale(self) -> np.ndarray:
        return self.raw_v_scale.swapaxes(2, 3) if self.options.layout == "by_head" else self.raw_v_scale

    def widened(self, name: str) -> np.ndarray:
        """Keys or values as the numbers that they stand for, in float32; NaN where nothing was written."""
        held, scale = getattr(self, name).astype(np.float32), getattr(self, f"{name}_scale")[..., None]
        if self.options.type != "i8":
            return held
        return np.where(np.isnan(scale) & (held == UNTOUCHED), np.nan, np.nan_to_num(held * scale))

    def own(self, name: int, length: int) -> list[int]:
        """The pages of a sequence, as many as `length` tokens need."""
        pages = self.owned.setdefault(name, [])
        while len(pages) * self.sizes.page < length:
            pages.append(self.free.pop())
        return pages

    def fill(self, name: int, k: np.ndarray, v: np.ndarray) -> None:
        """Put keys and values where a former step would have left them."""
        pages, size = self.own(name, len(k)), self.sizes.page
        (k, k_scale), (v, v_scale) = stored(k, self.options), stored(v, self.options)
        for at in range(len(k)):
            place = LAYER, pages[at // size], at % size
            self.k[place], self.v[place] = k[at], v[at]
            self.k_scale[place], self.v_scale[place] = k_scale[at], v_scale[at]


@dataclass(frozen=True)
class Row:
    """`count` tokens of sequence `name` are computed, after which it has `length`."""

    name: int
    length: int
    count: int


@dataclass
class Step:
    pool: Pool
    sequences: dict[int, Tokens]
    rows: Sequence[Row]
    tokens: int
    slots: int
    fence: Callable[[np.ndarray], np.ndarray] = lambda array: array

    @cached_property
    def starts(self) -> np.ndarray:
        counts = [row.count for row in self.rows] + [0] * (self.slots - len(self.rows))
        return np.concatenate(([0], np.cumsum(counts))).astype(np.int32)

    def run(self, **changes: Any) -> np.ndarray:
        """The output, [t, n, h]. `changes` to the call are for calls that must fail."""
        s, o = self.pool.sizes, self.pool.options
        lengths = np.zeros(self.slots, np.int32)
        width = max((-(-row.length // s.page) for row in self.rows), default=0) + 3
        table = np.full((self.slots, width), self.pool.pages - 1, np.int32)
        q = np.full((self.tokens, s.heads, s.size), np.nan, np.float32)
        k, v = np.full((2, self.tokens, s.kv_heads, s.size), np.nan, np.float32)
        pairs = s.size // 2 if o.pairs is None else o.pairs
        cos = np.full((self.tokens, pairs), np.nan, np.float32)
        sin = cos.copy()
        for i, row in enumerate(self.rows):
            pages = self.pool.own(row.name, row.length)
            table[i, : len(pages)] = pages
            lengths[i] = row.length
            here, there = slice(*self.starts[i : i + 2]), slice(row.length - row.count, row.length)
            sequence = self.sequences[row.name]
            q[here], k[here], v[here] = sequence.q[there], sequence.k[there], sequence.v[there]
            cos[here], sin[here] = (a[there] for a in angles(row.length, pairs))
        out = np.full(q.shape, np.nan, np.float32)
        pool = self.pool
        pool.raw_k, pool.raw_v = self.fence(pool.raw_k), self.fence(pool.raw_v)
        pool.raw_k_scale, pool.raw_v_scale = self.fence(pool.raw_k_scale), self.fence(pool.raw_v_scale)
        arrays = {"q": q, "k": k, "v": v, "starts": self.starts, "lengths": lengths, "page_table": table, "out": out}
        if o.rotate:
            arrays |= {"cos": cos, "sin": sin}
        if o.sinks:
            arrays |= {"sinks": sinks(s.heads)}
        arrays = {name: self.fence(array) for name, array in arrays.items()}
        arrays |= {"cache_k": pool.raw_k, "cache_v": pool.raw_v}
        if o.type == "i8":
            arrays |= {"k_scale": pool.raw_k_scale, "v_scale": pool.raw_v_scale}
        call = Call(
            tokens=self.tokens,
            heads=s.heads,
            kv_heads=s.kv_heads,
            size=s.size,
            rows=self.slots,
            pages_per_row=width,
            layers=LAYERS,
            pages=self.pool.pages,
            page_size=s.page,
            layer=LAYER,
            pairs=pairs,
            q_stride=s.heads * s.size,
            k_stride=s.kv_heads * s.size,
            v_stride=s.kv_heads * s.size,
            type=list(TYPES).index(o.type),
            layout=LAYOUTS.index(o.layout),
            scale=s.scale,
            window=o.window,
            soft_cap=o.soft_cap,
        )
        weights = tuple(self.fence(weight) for weight in norm_weights(s.size))
        if o.norm:
            call.q_norm, call.k_norm = (HeadNorm(w.ctypes.data, NORM_EPS, NORM_OFFSET) for w in weights)
        arrays |= {name: value for name, value in changes.items() if isinstance(value, np.ndarray)}
        for name, array in arrays.items():
            setattr(call, name, array.ctypes.data)
        for name, value in changes.items():
            if not isinstance(value, np.ndarray):
                setattr(call, name, value)
        wrong = native.slipstream_attend(ctypes.byref(call))
        if wrong is not None:
            raise ValueError(wrong.decode())
        return arrays["out"]


def norm_weights(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The norms' weights of queries and of keys, [h] each."""
    q, k = np.random.default_rng(size).uniform(-0.5, 0.5, size=(2, size)).astype(np.float32)
    return q, k


def sinks(heads: int) -> np.ndarray:
    """A score of each head: far below those of the keys, among them, and far above."""
    return np.linspace(-30, 9, heads).astype(np.float32)


def normed(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The RMS norm of each head of x [length, n, h], in float64."""
    wide = x.astype(np.float64)
    share = np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + NORM_EPS)
    return wide / share * (weight.astype(np.float64) + NORM_OFFSET)


def angles(length: int, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of positions 0 .. length - 1, [length, pairs] each."""
    angle = np.arange(length)[:, None] / 100.0 ** (np.arange(pairs) / pairs)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rotated(x: np.ndarray, pairs: int | None) -> np.ndarray:
    """Pairs (i, i + pairs) of x [length, n, h], by the angles of its positions."""
    pairs = x.shape[-1] // 2 if pairs is None else pairs
    cos, sin = (a.astype(np.float64)[:, None] for a in angles(len(x), pairs))
    first, second, rest = np.split(x.astype(np.float64), [pairs, 2 * pairs], axis=-1)
    return np.concatenate((first * cos - second * sin, second * cos + first * sin, rest), axis=-1)


def stored(x: np.ndarray, options: Options) -> tuple[np.ndarray, np.ndarray]:
    """Keys or values x [length, k, h] in the cache's type, and their scales [length, k], 1 but for int8."""
    x = x.astype(np.float32)
    if options.type != "i8":
        limit = 65504 if options.type == "f16" else np.inf
        return np.clip(x, -limit, limit).astype(TYPES[options.type]), np.ones(x.shape[:2], np.float32)
    largest = np.abs(x).max(axis=-1)
    there = largest > 1e-30
    inverse = np.divide(np.float32(127), largest, where=there, out=np.zeros_like(largest))
    values = np.rint(x * inverse[..., None]).astype(np.int8)
    return values, np.where(there, largest * np.float32(1 / 127), np.float32(0))


def prepared(sequence: Tokens, options: Options) -> Tokens:
    """The sequence with queries and keys normed and rotated."""
    if options.norm:
        q, k = norm_weights(sequence.q.shape[-1])
        sequence = replace(sequence, q=normed(sequence.q, q), k=normed(sequence.k, k))
    if options.rotate:
        sequence = replace(sequence, q=rotated(sequence.q, options.pairs), k=rotated(sequence.k, options.pairs))
    return sequence


def cached(sequence: Tokens, options: Options) -> Tokens:
    """The sequence as the cache holds it: prepared, and the keys and values rounded."""
    sequence = prepared(sequence, options)
    rounded = {}
    for name in ("k", "v"):
        values, scale = stored(getattr(sequence, name), options)
        rounded[name] = values.astype(np.float32) * scale[..., None]
    return replace(sequence, **rounded)


def reference(sequence: Tokens, row: Row, options: Options) -> np.ndarray:
    """Attention of a row's queries, one at a time, in float64: [count, n, h]."""
    held = cached(sequence, options)
    k, v = held.k.astype(np.float64), held.v.astype(np.float64)
    shared = held.q.shape[1] // k.shape[1]
    out = np.zeros((row.count, *held.q.shape[1:]))
    for i in range(row.count):
        at = row.length - row.count + i
        seen = slice(max(0, at - options.window + 1) if options.window else 0, at + 1)
        keys, values = (np.repeat(x[seen], shared, axis=1) for x in (k, v))
        scores = np.einsum("nh,cnh->nc", held.q[at].astype(np.float64), keys) * keys.shape[-1] ** -0.5
        if options.soft_cap:
            scores = options.soft_cap * np.tanh(scores / options.soft_cap)
        if options.sinks:
            scores = np.append(scores, sinks(len(scores))[:, None], axis=1)
            values = np.append(values, np.zeros_like(values[:1]), axis=0)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[i] = np.einsum("nc,cnh->nh", weights / weights.sum(axis=1, keepdims=True), values)
    return out
