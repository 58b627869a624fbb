"""A model that makes one vector of a text, as the engine runs it: an encoder, or a decoder whose last state is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from slipstream.checkpoint.renamed import Renamed
from slipstream.engine.shapes import Shape
from slipstream.kernels.matmul import dot
from slipstream.kernels.norm import Norm
from slipstream.kernels.ragged import Kernels, KVCache, Step
from slipstream.models.llm.weights import Leaf
from slipstream.models.registry import Encoder, encoder, family, of_language_model
from slipstream.models.scores import ACTIVATIONS, SAID, activation_of, scores
from slipstream.spec.param import Axis, param
from slipstream.spec.source import Checkpoint, Pooling, PoolingKind, Source

DONATED = 1  # the argument of a step that it updates in place: the cache
NO_SECOND = np.iinfo(np.int32).max  # position of the first token of the second text, where there is none

_ENCODERS_POOLING = Pooling("cls", normalize=True)
_DECODERS_POOLING = Pooling("last", normalize=True)


@dataclass(frozen=True)
class PoolingModel:
    """`states(w, config, tokens, types, step, cache)` -> (final states [t, d], cache).

    `finish(w, vectors [s, d])` -> [s, e]: what becomes of the states that were chosen, or of their mean. `config`: as
    the family reads it. `pooling`: how a row's states become one. `activation`: a score's, a name of `models.scores`.
    `cached`: it keeps keys and values, or where it is `latent` keys alone. `whole`: a text must be in one step.
    """

    name: str
    config: Any
    plan: Any
    source: Source
    unread: tuple[str, ...]
    size: int
    activation: str | None
    pooling: Pooling
    cached: bool
    whole: bool
    states: Callable[[Any, Any, Array, Array, Step, KVCache | None], tuple[Array, KVCache | None]]
    finish: Callable[[Any, Array], Array]
    latent: bool = False

    @property
    def task(self) -> Literal["embed", "score"]:
        """What its vectors are."""
        return "embed" if self.activation is None else "score"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scorer:
    """The weights of a decoder that scores: the model's, and those of its one label, [o, d]."""

    model: Any
    score: Leaf


def pooling_model(checkpoint: Checkpoint) -> PoolingModel:
    """The model of a checkpoint. Raises UnsupportedModel or CheckpointError for one that no family reads."""
    row = encoder(checkpoint.config)
    return _decoder(checkpoint) if row is None else _encoder(checkpoint, row)


def _encoder(checkpoint: Checkpoint, row: Encoder) -> PoolingModel:
    c = row.from_hf(checkpoint.config)
    pooling = checkpoint.pooling or _ENCODERS_POOLING

    def states(
        w: Any, c: Any, tokens: Array, types: Array, step: Step, cache: KVCache | None
    ) -> tuple[Array, KVCache | None]:
        return row.forward(w, c, tokens, types, step), cache

    activation = None if c.score is None else activation_of(checkpoint.config)
    return PoolingModel(
        name=row.name,
        config=c,
        plan=row.plan(c),
        source=Renamed.of(checkpoint.source, row.rename),
        unread=row.unread,
        size=c.width if activation is None else 1,
        activation=activation,
        pooling=pooling if activation is None else replace(pooling, kind="cls"),
        cached=False,
        whole=True,
        states=states,
        finish=_as_it_is if activation is None else lambda w, x: ACTIVATIONS[activation](row.score(w, c, x)),
    )


def _decoder(checkpoint: Checkpoint) -> PoolingModel:
    whole = of_language_model(checkpoint.config)
    row = family(whole)
    c = row.from_hf({name: value for name, value in whole.items() if name not in SAID})
    activation = activation_of(checkpoint.config) if scores(checkpoint.config) else None
    pooling = _DECODERS_POOLING if activation else checkpoint.pooling or _DECODERS_POOLING
    # sentence-transformers saves the model without the head, and so without the name that it has beside one.
    names = checkpoint.source.names()
    bare = not any(name.startswith(("model.", "language_model.")) for name in names)
    model = replace(row.plan(c), head=None)
    label = param(Axis("labels", "o", 1) | Axis("embed", "d", c.width), "score.weight")

    def states(
        w: Any, c: Any, tokens: Array, types: Array, step: Step, cache: KVCache | None
    ) -> tuple[Array, KVCache | None]:
        assert cache is not None
        own = w.model if isinstance(w, Scorer) else w
        x, cache = row.forward(own, c, tokens, step, cache)
        return Norm(own.final_norm, c.norm_eps, row.norm_offset)(x), cache

    def score(w: Any, x: Array) -> Array:
        return ACTIVATIONS[activation or ""](dot("sd,od->so", x, w.score, dtype=jnp.float32))

    return PoolingModel(
        name=row.name,
        config=c,
        plan=Scorer(model, label) if activation else model,
        source=Renamed.of(checkpoint.source, lambda name: f"model.{name}") if bare else checkpoint.source,
        unread=(*row.unread, "model.lm_head.weight"),
        size=1 if activation else c.width,
        activation=activation,
        pooling=pooling,
        cached=True,
        whole=pooling.kind != "last",
        states=states,
        finish=score if activation else _as_it_is,
        latent=row.latent,
    )


def _as_it_is(w: Any, x: Array) -> Array:
    return x


def first(x: Array, step: Step) -> Array:
    """Each row's first state."""
    return x[jnp.minimum(step.starts[:-1], x.shape[0] - 1)]


def last(x: Array, step: Step) -> Array:
    """Each row's last state."""
    return x[jnp.maximum(step.starts[1:] - 1, 0)]


def mean(x: Array, step: Step) -> Array:
    """The mean of each row's states, zeros for an empty row."""
    count = step.lengths.shape[0]
    sums = jax.ops.segment_sum(x, step.rows, count + 1)[:count]  # padding is row `count`
    return sums / jnp.maximum(step.starts[1:] - step.starts[:-1], 1)[:, None]


POOLERS: Mapping[PoolingKind, Callable[[Array, Step], Array]] = {"cls": first, "last": last, "mean": mean}
"""States [t, d] of whole rows, or for the last one of their ends, to vectors [s, d]; all in float32."""


@dataclass(frozen=True)
class PoolingRows:
    """The host's arrays of a step: views of parts of `flat`, i32, which is what the step takes.

    `tokens` [t]; `second` [s]: position where a row's second text begins; `starts`, `lengths`, `pages` as in `Step`.
    """

    flat: Any
    tokens: Any
    second: Any
    starts: Any
    lengths: Any
    pages: Any

    @classmethod
    def of(cls, flat: Any, shape: Shape, pages_per_row: int) -> PoolingRows:
        """The parts of an array of numpy's, or of one that is traced."""
        sizes = _sizes(shape, pages_per_row)
        ends = np.cumsum(sizes)
        tokens, second, starts, lengths, pages = (flat[e - n : e] for e, n in zip(ends, sizes, strict=True))
        return cls(flat, tokens, second, starts, lengths, pages.reshape(shape.rows, pages_per_row))

    @classmethod
    def empty(cls, shape: Shape, pages_per_row: int) -> PoolingRows:
        """Rows that compute nothing."""
        rows = cls.of(np.zeros(sum(_sizes(shape, pages_per_row)), np.int32), shape, pages_per_row)
        rows.second[:] = NO_SECOND
        return rows


def _sizes(shape: Shape, pages_per_row: int) -> tuple[int, ...]:
    return shape.tokens, shape.rows, shape.rows + 1, shape.rows, shape.rows * pages_per_row


def make_pooling_step(
    model: PoolingModel, shape: Shape, pages_per_row: int, kernels: Kernels
) -> Callable[[Any, KVCache | None, Array], tuple[KVCache | None, Array]]:
    """The step of one shape, to be jitted with the cache donated: the vectors float32 [s, e] of its rows.

    A row's vector means something once its text's last token is computed.
    """

    def step(weights: Any, cache: KVCache | None, flat: Array) -> tuple[KVCache | None, Array]:
        rows = PoolingRows.of(flat, shape, pages_per_row)
        ragged = Step.of(rows.starts, rows.lengths, rows.pages, shape.tokens, kernels=kernels)
        second = rows.second[jnp.minimum(ragged.rows, shape.rows - 1)]
        types = (ragged.positions >= second).astype(jnp.int32)
        x, cache = model.states(weights, model.config, rows.tokens, types, ragged, cache)
        vectors = POOLERS[model.pooling.kind](x.astype(jnp.float32), ragged)
        return cache, model.finish(weights, vectors).astype(jnp.float32)

    return step
