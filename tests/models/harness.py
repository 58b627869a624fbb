"""Running a family without the engine: random weights, and forwards over a paged cache in any cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slipstream.checkpoint import RandomSource, load, open_checkpoint
from slipstream.kernels.ragged import KVCache, Step
from slipstream.models.registry import Family, family
from slipstream.spec.param import Param
from slipstream.spec.source import Source

PAGE = 4


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

    @classmethod
    def read(cls, config: Mapping[str, Any], source: Source) -> Model:
        """The model of a config.json with a source's weights, in float32."""
        chosen = family(config)
        c = chosen.from_hf(config)
        plan = chosen.plan(c)

        def place(_: Param, __: str, values: np.ndarray) -> jax.Array:
            return jnp.asarray(values, jnp.float32)

        return cls(chosen, c, load(plan, source, place, allowed_unused=chosen.unread))

    @classmethod
    def open(cls, path: Path) -> Model:
        """A checkpoint's model."""
        checkpoint = open_checkpoint(path)
        return cls.read(checkpoint.config, checkpoint.source)

    @classmethod
    def random(cls, config: Mapping[str, Any], seed: int = 0) -> Model:
        """Random weights for a config.json."""
        return cls.read(config, random_source(config, seed))

    @cached_property
    def compiled(self) -> Callable[..., tuple[jax.Array, KVCache]]:
        """Logits [t, v] and cache of one step."""

        def run(w: Any, tokens: jax.Array, step: Step, cache: KVCache) -> tuple[jax.Array, KVCache]:
            x, cache = self.family.forward(w, self.config, tokens, step, cache)
            return self.family.unembed(w, self.config, x), cache

        return partial(jax.jit(run, donate_argnums=3), self.weights)

    def session(self, lengths: Sequence[int], width: int) -> Session:
        """An empty cache for sequences of at most these lengths, computed in steps of `width` tokens."""
        return Session(self, lengths, width)


class Session:
    """A cache and the page tables of some sequences, whose pages are spread over it in no order.

    Every step is padded to one width, so a session compiles once, and padding is tested throughout.
    """

    def __init__(self, model: Model, lengths: Sequence[int], width: int) -> None:
        self.model, self.width = model, width
        per_row = -(-max(lengths) // PAGE)
        count = per_row * len(lengths) + 1
        order = np.random.default_rng(7).permutation(count)[: per_row * len(lengths)]
        self.tables = jnp.asarray(order.reshape(len(lengths), per_row), jnp.int32)
        self.filled = np.zeros(len(lengths), np.int32)
        c = model.config
        self.cache = KVCache.zeros(c.layers, count, PAGE, c.kv_heads, c.head_dim, jnp.float32)

    def step(self, *chunks: Sequence[int]) -> list[np.ndarray]:
        """Compute the next tokens of every row in one step; logits [tokens, v] of each."""
        counts = np.asarray([len(chunk) for chunk in chunks], np.int32)
        self.filled = self.filled + counts
        starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
        tokens = np.zeros(self.width, np.int32)
        tokens[: starts[-1]] = [token for chunk in chunks for token in chunk]
        lengths = np.where(counts > 0, self.filled, 0).astype(np.int32)
        step = Step.of(jnp.asarray(starts), jnp.asarray(lengths), self.tables, self.width)
        logits, self.cache = self.model.compiled(jnp.asarray(tokens), step, self.cache)
        return [np.asarray(logits[a:b]) for a, b in pairwise(starts)]

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
