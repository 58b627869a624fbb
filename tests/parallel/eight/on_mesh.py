"""A model of random weights on a mesh, and its steps: forwards of several rows over a paged cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from slipstream.checkpoint import load
from slipstream.checkpoint.placement import Placement
from slipstream.checkpoint.quantized.rounded import RoundedSource
from slipstream.engine.memory import KVShape
from slipstream.kernels.ragged import KVCache, Step
from slipstream.models.registry import Family, family
from slipstream.parallel.fit import check_fit
from slipstream.parallel.mesh import make_mesh
from slipstream.parallel.rules import Rules, rules_of
from slipstream.parallel.spread import heads_of
from slipstream.quant.rounding import SCHEMES
from slipstream.spec.source import Source
from tests.models.harness import random_source

PAGE, PAGES_EACH, ROWS = 4, 8, 8


@dataclass(frozen=True)
class OnMesh:
    """A model on `tp` devices; None: on one, without a mesh. A step has a token of each of ROWS sequences."""

    family: Family
    config: Any
    weights: Any
    mesh: Mesh | None
    rules: Rules

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        tp: int | None,
        *,
        scheme: str | None = None,
        experts: bool = False,
        tokens: bool = False,
    ) -> OnMesh:
        chosen = family(config)
        c = chosen.from_hf(config)
        plan, rules = chosen.plan(c), rules_of(experts=experts, tokens=tokens)
        source: Source = random_source(config)
        if scheme is not None:
            source = RoundedSource(source, plan, SCHEMES[scheme])
        mesh = None
        if tp is not None:
            check_fit(plan, c.kv_heads, tp, rules)
            mesh = make_mesh(jax.devices()[:tp], c.kv_heads)
        place = Placement(jax.devices()[0], np.dtype(np.float32), False, "exact", mesh, rules)
        weights = load(
            plan,
            source,
            place.place,
            place_blocks=place.place_blocks,
            place_parts=place.place_parts,
            allowed_unused=chosen.unread,
        )
        return cls(chosen, c, weights, mesh, rules)

    def cache(self) -> KVCache:
        """An empty cache."""
        c = self.config
        heads = None if self.mesh is None else heads_of(self.mesh, self.rules)
        sizes = (c.layers, c.kv_heads, c.head_dim, PAGE)
        kv = KVShape(*sizes, np.dtype(np.float32), values=not self.family.latent, heads=heads)
        empty = kv.cache(PAGES_EACH * ROWS, "reference")
        if self.mesh is None:
            return empty
        return jax.device_put(empty, jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), empty.specs()))

    @cached_property
    def step(self) -> Any:
        """The compiled step: `(weights, tokens, starts, lengths, cache)` to logits and cache."""

        def run(w: Any, tokens: jax.Array, starts: jax.Array, lengths: jax.Array, cache: KVCache) -> Any:
            tables = jnp.arange(PAGES_EACH * ROWS, dtype=jnp.int32).reshape(ROWS, -1)
            step = Step.of(starts, lengths, tables, ROWS, decode_only=True)
            x, cache = self.family.forward(w, self.config, tokens, step, cache)
            return self.family.unembed(w, self.config, x), cache

        numbers = (np.zeros(size, np.int32) for size in (ROWS, ROWS + 1, ROWS))
        return jax.jit(run).lower(self.weights, *numbers, self.cache()).compile()

    def session(self) -> Session:
        """Its sequences, of which nothing is computed yet."""
        return Session(self)


class Session:
    """A sequence in each row."""

    def __init__(self, model: OnMesh) -> None:
        self.model, self.cache = model, model.cache()
        self.lengths = np.zeros(ROWS, np.int32)

    def logits(self, chunks: Sequence[Sequence[int]]) -> np.ndarray:
        """Those of the next tokens of all rows, [tokens, v]."""
        counts = [len(chunk) for chunk in chunks]
        self.lengths = self.lengths + np.asarray(counts, np.int32)
        starts = np.cumsum([0, *counts]).astype(np.int32)
        tokens = np.zeros(ROWS, np.int32)
        tokens[: starts[-1]] = np.concatenate(chunks)
        found, self.cache = self.model.step(self.model.weights, tokens, starts, self.lengths, self.cache)
        return np.asarray(found)[: starts[-1]]

    def greedy(self, prompts: Sequence[Sequence[int]], count: int) -> list[np.ndarray]:
        """Logits of the prompts and of `count` greedy tokens after them."""
        ends = np.cumsum([len(prompt) for prompt in prompts]) - 1
        found = [self.logits(prompts)]
        last = found[0][ends]
        for _ in range(count):
            last = self.logits(last.argmax(-1)[:, None].tolist())
            found.append(last)
        return found
