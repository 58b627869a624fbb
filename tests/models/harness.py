"""Running a family without the engine: random weights, and forwards over a paged cache in any cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np

from slipstream.checkpoint import RandomSource, load, open_checkpoint
from slipstream.checkpoint.placement import Placement
from slipstream.engine.memory import KVShape
from slipstream.kernels.native import library
from slipstream.kernels.packed import Precision
from slipstream.kernels.ragged import Kernels, KVCache, Step
from slipstream.models.registry import Family, family
from slipstream.spec.source import Source

PAGES: dict[Kernels, int] = {"reference": 4, "cpu": 16}  # many to a sequence; what the native kernels read fastest


def random_source(config: Mapping[str, Any], seed: int = 0) -> RandomSource:
    """Weights that depend on the seed and on each tensor's name alone; norms far enough from 1 for a fault to show."""
    chosen = family(config)
    return RandomSource(chosen.plan(chosen.from_hf(config)), seed, jitter=0.3)


@dataclass(frozen=True)
class Model:
    """A family with its config and weights."""

    family: Family
    config: Any
    weights: Any
    kernels: Kernels = "reference"

    @classmethod
    def read(
        cls, config: Mapping[str, Any], source: Source, kernels: Kernels = "reference", precision: Precision = "exact"
    ) -> Model:
        """The model of a config.json with a source's weights: in float32, or as the native kernels read them."""
        assert kernels != "cpu" or library.reason() is None, library.reason()
        chosen = family(config)
        c = chosen.from_hf(config)
        place = Placement(jax.local_devices()[0], np.dtype(np.float32), kernels == "cpu", precision)
        plan, unread = chosen.plan(c), chosen.unread
        weights = load(plan, source, place.place, place_blocks=place.place_blocks, allowed_unused=unread)
        return cls(chosen, c, weights, kernels)

    @classmethod
    def open(cls, path: Path, kernels: Kernels = "reference", precision: Precision = "exact") -> Model:
        """A checkpoint's model."""
        checkpoint = open_checkpoint(path)
        return cls.read(checkpoint.config, checkpoint.source, kernels, precision)

    @classmethod
    def random(cls, config: Mapping[str, Any], seed: int = 0) -> Model:
        """Random weights for a config.json."""
        return cls.read(config, random_source(config, seed))

    @cached_property
    def compiled(self) -> Callable[..., tuple[jax.Array, KVCache]]:
        """Logits [t, v] and cache of one step: of tokens, a cache, and the starts, lengths and pages of `Step.of`."""

        def run(w: Any, tokens: jax.Array, cache: KVCache, *ragged: jax.Array) -> tuple[jax.Array, KVCache]:
            step = Step.of(*ragged, tokens.shape[0], kernels=self.kernels)
            x, cache = self.family.forward(w, self.config, tokens, step, cache)
            return self.family.unembed(w, self.config, x), cache

        # These run a few dozen steps of a few hundred numbers: compiling is nearly all of their time.
        quick = {"xla_backend_optimization_level": 0}
        return partial(jax.jit(run, donate_argnums=2, compiler_options=quick), self.weights)

    def session(self, lengths: Sequence[int], width: int) -> Session:
        """An empty cache for sequences of at most these lengths, computed in steps of `width` tokens."""
        return Session(self, lengths, width)


class Session:
    """A cache and the page tables of some sequences, whose pages are spread over it in no order.

    Every step is padded to one width, so a session compiles once, and padding is tested throughout.
    """

    def __init__(self, model: Model, lengths: Sequence[int], width: int) -> None:
        self.model, self.width = model, width
        page = PAGES[model.kernels]
        per_row = -(-max(lengths) // page)
        count = per_row * len(lengths) + 1
        order = np.random.default_rng(7).permutation(count)[: per_row * len(lengths)]
        self.tables = order.reshape(len(lengths), per_row).astype(np.int32)
        self.filled = np.zeros(len(lengths), np.int32)
        c = model.config
        kv = KVShape(c.layers, c.kv_heads, c.head_dim, page, np.dtype(np.float32), values=not model.family.latent)
        # Where the weights are: a step's result is, and a cache that is not would have the step compiled twice.
        self.cache = jax.device_put(kv.cache(count, model.kernels), jax.local_devices()[0])

    def step(self, *chunks: Sequence[int]) -> list[np.ndarray]:
        """Compute the next tokens of every row in one step; logits [tokens, v] of each."""
        counts = np.asarray([len(chunk) for chunk in chunks], np.int32)
        self.filled = self.filled + counts
        starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
        tokens = np.zeros(self.width, np.int32)
        tokens[: starts[-1]] = [token for chunk in chunks for token in chunk]
        lengths = np.where(counts > 0, self.filled, 0).astype(np.int32)
        logits, self.cache = self.model.compiled(tokens, self.cache, starts, lengths, self.tables)
        rows = np.asarray(logits)
        return [rows[a:b] for a, b in pairwise(starts)]

    def feed(self, tokens: Sequence[int]) -> np.ndarray:
        """Decode given tokens of the one row, a step each; logits [tokens, v]."""
        return np.concatenate([self.step([token])[0] for token in tokens])

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """`count` greedy tokens of the one row after a prompt."""
        tokens = [int(self.step(prompt)[0][-1].argmax())]
        while len(tokens) < count:
            tokens.append(int(self.step(tokens[-1:])[0][-1].argmax()))
        return tokens


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference of a logit over the largest logit, taken at each position; the worst position's counts."""
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    return float((np.abs(ours - theirs).max(-1) / np.abs(theirs).max(-1)).max())


def prompt_of(vocab_size: int, length: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    return np.random.default_rng([seed, length]).integers(0, vocab_size, length).tolist()
