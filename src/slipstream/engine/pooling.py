"""A model that makes one vector of a text, as the engine runs it: an encoder, or a decoder whose last state is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from slipstream.checkpoint.renamed import Renamed
from slipstream.errors import CheckpointError, UnsupportedModel
from slipstream.kernels.matmul import dot
from slipstream.kernels.norm import Norm
from slipstream.kernels.ragged import KVCache, Step
from slipstream.models.llm.weights import Leaf
from slipstream.models.registry import Encoder, Family, encoder, family, of_language_model
from slipstream.models.scores import ACTIVATIONS, SAID, SIGMOID, activation_of, labels
from slipstream.spec.param import Axis, Param, Part, param
from slipstream.spec.source import Answers, Checkpoint, Dense, Pooling, Source

Task = Literal["embed", "score", "classify"]

_ENCODERS_POOLING = Pooling("cls", normalize=True)
_DECODERS_POOLING = Pooling("last", normalize=True)
_YES = ("yes",)  # the one label of a model that answers


@dataclass(frozen=True)
class PoolingModel:
    """`states(w, config, tokens, types, step, cache)` -> (final states [t, d], cache).

    `finish(w, vectors [s, d])` -> [s, e]: what becomes of the states that were chosen, or of their mean. `config`: as
    the family reads it. `pooling`: how a row's states become one. `labels`: a classifier's, one of a reranker, None of
    what makes vectors; `activation` makes scores of them, a name of `models.scores`. `cached`: it keeps keys and
    values, or where it is `latent` keys alone. `whole`: a text must be in one step. `kv_heads`: heads that devices
    share.
    """

    name: str
    config: Any
    plan: Any
    source: Source
    unread: tuple[str, ...]
    size: int
    labels: tuple[str, ...] | None
    activation: str | None
    pooling: Pooling
    cached: bool
    whole: bool
    kv_heads: int
    states: Callable[[Any, Any, Array, Array, Step, KVCache | None], tuple[Array, KVCache | None]]
    finish: Callable[[Any, Array], Array]
    latent: bool = False

    @property
    def task(self) -> Task:
        """What its vectors are."""
        if self.labels is None:
            return "embed"
        return "score" if len(self.labels) == 1 else "classify"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scorer:
    """The weights of a decoder that scores: the model's, and those of its labels, or of the tokens it answers with, [o,
    d]."""

    model: Any
    score: Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Product:
    """A product after the pooling: `weight` [o, e], `bias` [o], and the one that follows."""

    weight: Leaf
    bias: Leaf | None
    then: Product | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Projected:
    """The weights of a model whose pooled states go through products."""

    model: Any
    first: Product


def pooling_model(checkpoint: Checkpoint) -> PoolingModel:
    """The model of a checkpoint. Raises UnsupportedModel or CheckpointError for one that no family reads."""
    row = encoder(checkpoint.config)
    made = _decoder(checkpoint) if row is None else _encoder(checkpoint, row)
    return _projected(made) if made.pooling.dense and made.task == "embed" else made


def _encoder(checkpoint: Checkpoint, row: Encoder) -> PoolingModel:
    c = row.from_hf(checkpoint.config)
    pooling = checkpoint.pooling or _ENCODERS_POOLING
    named = labels(checkpoint.config)

    def states(
        w: Any, c: Any, tokens: Array, types: Array, step: Step, cache: KVCache | None
    ) -> tuple[Array, KVCache | None]:
        return row.forward(w, c, tokens, types, step), cache

    activation = None if named is None else activation_of(checkpoint.config)
    return PoolingModel(
        name=row.name,
        config=c,
        plan=row.plan(c),
        source=Renamed.of(checkpoint.source, row.rename),
        unread=row.unread,
        size=c.width if named is None else len(named),
        labels=named,
        activation=activation,
        pooling=pooling if named is None else replace(pooling, kind="cls"),
        cached=False,
        whole=True,
        kv_heads=c.heads,
        states=states,
        finish=_as_it_is if activation is None else lambda w, x: ACTIVATIONS[activation](row.score(w, c, x)),
    )


def _decoder(checkpoint: Checkpoint) -> PoolingModel:
    whole = of_language_model(checkpoint.config)
    row = family(whole)
    c = row.from_hf({name: value for name, value in whole.items() if name not in SAID})
    pooling = checkpoint.pooling or _DECODERS_POOLING
    named = labels(checkpoint.config)
    # sentence-transformers saves the model without the head, and so without the name that it has beside one.
    names = checkpoint.source.names()
    bare = not any(name.startswith(("model.", "language_model.")) for name in names)
    made = PoolingModel(
        name=row.name,
        config=c,
        plan=replace(row.plan(c), head=None),
        source=Renamed.of(checkpoint.source, lambda name: f"model.{name}") if bare else checkpoint.source,
        unread=(*row.unread, "model.lm_head.weight"),
        size=c.width,
        labels=None,
        activation=None,
        pooling=pooling if named is None else _DECODERS_POOLING,
        cached=True,
        whole=named is None and pooling.kind != "last",
        kv_heads=c.kv_heads,
        states=_decoders_states(row, normed=True),
        finish=_as_it_is,
        latent=row.latent,
    )
    if named is not None:
        return _classifying(made, named, activation_of(checkpoint.config))
    return made if pooling.answers is None else _answering(made, row, pooling.answers)


def _decoders_states(
    row: Family, *, normed: bool
) -> Callable[[Any, Any, Array, Array, Step, KVCache | None], tuple[Array, KVCache | None]]:
    """The last states, after the final norm where they are to be `normed`."""

    def states(
        w: Any, c: Any, tokens: Array, types: Array, step: Step, cache: KVCache | None
    ) -> tuple[Array, KVCache | None]:
        assert cache is not None
        own = w.model if isinstance(w, Scorer) else w
        x, cache = row.forward(own, c, tokens, step, cache)
        return Norm(own.final_norm, c.norm_eps, row.norm_offset)(x) if normed else x, cache

    return states


def _classifying(model: PoolingModel, named: tuple[str, ...], activation: str) -> PoolingModel:
    """The same with a product for its labels."""
    weight = param(Axis("labels", "o", len(named)) | Axis("embed", "d", model.size), "score.weight")

    def finish(w: Any, x: Array) -> Array:
        return ACTIVATIONS[activation](dot("sd,od->so", x, w.score, dtype=jnp.float32))

    return replace(
        model,
        plan=Scorer(model.plan, weight),
        size=len(named),
        labels=named,
        activation=activation,
        finish=finish,
    )


def _answering(model: PoolingModel, row: Family, answers: Answers) -> PoolingModel:
    """The same with the likelihood of one token over another: two rows of the language model's head, of which no more
    is read.

    Raises CheckpointError for tokens that the model does not have.
    """
    c = model.config
    head: Param = (whole := row.plan(c)).head or whole.embed
    tokens = sorted({answers.yes, answers.yes if answers.no is None else answers.no})
    if tokens[0] < 0 or tokens[-1] >= c.vocab_size:
        raise CheckpointError(f"the tokens {tokens} that a pair is scored by are not among the model's {c.vocab_size}")
    apart = tokens[-1] - tokens[0] or 1
    axes = Axis("answers", "v", len(tokens)) | Axis("embed", "d", c.width)
    weight = param(axes, head.names[0], part=Part("v", tokens[0], c.vocab_size, step=apart))
    yes = tokens.index(answers.yes)

    def finish(w: Any, x: Array) -> Array:
        # The family's own way from states to logits, for these rows alone.
        found = row.unembed(replace(w.model, head=w.score), c, x)
        over = found[:, yes] if len(tokens) == 1 else found[:, yes] - found[:, 1 - yes]
        return jax.nn.sigmoid(over)[:, None]

    return replace(
        model,
        plan=Scorer(model.plan, weight),
        unread=(*model.unread, "lm_head.weight"),
        size=1,
        labels=_YES,
        activation=SIGMOID,
        states=_decoders_states(row, normed=False),
        finish=finish,
    )


def _projected(model: PoolingModel) -> PoolingModel:
    """The same with its pooling's Dense modules. Raises CheckpointError for sizes that do not follow one another."""
    size = model.size
    for dense in model.pooling.dense:
        if dense.inputs != size:
            raise CheckpointError(f"{dense.name} takes {dense.inputs} numbers, and there are {size}")
        if dense.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise UnsupportedModel(f"{dense.name} computes {dense.activation}; Slipstream computes {known}")
        size = dense.outputs

    def finish(w: Projected, x: Array) -> Array:
        x = model.finish(w.model, x)
        product: Product | None = w.first
        for dense in model.pooling.dense:
            assert product is not None
            x = dot("se,oe->so", x, product.weight, dtype=jnp.float32)
            x = ACTIVATIONS[dense.activation](x if product.bias is None else x + product.bias)
            product = product.then
        return x

    return replace(
        model,
        plan=Projected(model.plan, _products(model.pooling.dense)),
        size=size,
        states=lambda w, *rest: model.states(w.model, *rest),
        finish=finish,
    )


def _products(dense: tuple[Dense, ...]) -> Any:
    if not dense:
        return None
    first, at = dense[0], dense[0].name + ".linear."
    outputs = Axis("outputs", "o", first.outputs)
    weight = param(outputs | Axis("inputs", "e", first.inputs), at + "weight")
    return Product(weight, param(outputs, at + "bias") if first.bias else None, _products(dense[1:]))


def _as_it_is(w: Any, x: Array) -> Array:
    return x
