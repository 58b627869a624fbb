"""BERT and those built like it: MiniLM, BGE, E5, GTE, RoBERTa, XLM-RoBERTa, and rerankers made of them.

Devlin et al. 2018 (arXiv:1810.04805); RoBERTa is Liu et al. 2019 (arXiv:1907.11692).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from slipstream.errors import UnsupportedModel
from slipstream.kernels.bidirectional import attend_all
from slipstream.kernels.matmul import Around, dot, rows_of
from slipstream.kernels.norm import layer_norm
from slipstream.kernels.ragged import Step
from slipstream.models.activations import ACTIVATIONS, read_activation
from slipstream.models.keys import Keys
from slipstream.models.layers import run_layers
from slipstream.models.llm.blocks import linear, linears
from slipstream.models.llm.weights import Leaf
from slipstream.models.scores import SAID, labels
from slipstream.spec.param import Axis, Dims, param, stacked

CLASSIFIERS = {"bert": ("pooler.dense", "classifier"), "roberta": ("classifier.dense", "classifier.out_proj")}
"""Names of the two products that make a score of the first token's state."""


@dataclass(frozen=True)
class Config:
    """Sizes and switches. `max_position`: tokens of a text; their positions count from `first_position` on.

    `score`: the names of a classifier's products, of CLASSIFIERS; None: it has none. `labels`: their number.
    """

    vocab_size: int
    layers: int
    width: int
    hidden: int
    heads: int
    max_position: int
    first_position: int
    types: int
    norm_eps: float
    activation: str
    score: str | None
    labels: int

    @property
    def head_dim(self) -> int:
        """Size of one head."""
        return self.width // self.heads

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Config:
        """From config.json, whose defaults are transformers'. Raises an error of `errors` that names the key."""
        kind = "bert" if config.get("model_type") == "bert" else "roberta"
        keys = Keys(config, kind)
        # RoBERTa counts its positions from the one after the padding token's id.
        first = 0 if kind == "bert" else keys.take("pad_token_id", int, 1) + 1
        heads, width = keys.size("num_attention_heads", 12), keys.size("hidden_size", 768)
        activation = read_activation(keys, "hidden_act", "gelu")
        if width % heads:
            raise UnsupportedModel(f"config.json: {heads} attention heads do not divide a hidden_size of {width}")
        keys.expect("position_embedding_type", "absolute")
        for name in ("is_decoder", "add_cross_attention"):
            keys.expect(name, False)
        named = labels(config) or ()
        c = cls(
            vocab_size=keys.size("vocab_size", 30_522),
            layers=keys.size("num_hidden_layers", 12),
            width=width,
            hidden=keys.size("intermediate_size", 3072),
            heads=heads,
            max_position=keys.size("max_position_embeddings", 512) - first,
            first_position=first,
            types=keys.size("type_vocab_size", 2),
            norm_eps=keys.take("layer_norm_eps", float, 1e-12),
            activation=activation,
            score=kind if named else None,
            labels=len(named),
        )
        # Dropouts are for training; a language model's head and the poolers of other tasks are not computed here.
        keys.finish(
            (
                *("attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout", "tie_word_embeddings"),
                *("cross_attention_hidden_size", "directionality", "pooler_fc_size", "pooler_num_attention_heads"),
                *("pooler_num_fc_layers", "pooler_size_per_head", "pooler_type", "output_past", *SAID),
            )
        )
        return c


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Linear:
    """A product's weight and what is added to it; or a layer norm's."""

    weight: Leaf
    bias: Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Block:
    """The weights of one layer, or of all of them with a leading axis l."""

    q: Linear
    k: Linear
    v: Linear
    out: Linear
    attention_norm: Linear
    up: Linear
    down: Linear
    mlp_norm: Linear


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weights:
    """All weights. `dense` and `score` are a classifier's, else None."""

    words: Leaf
    positions: Leaf
    types: Leaf
    norm: Linear
    blocks: Block
    dense: Linear | None
    score: Linear | None


def plan(c: Config) -> Weights:
    """The weights' tree with a `Param` at each leaf. Names are those of the encoder alone, without its prefix."""
    D, F = Axis("embed", "d", c.width), Axis("mlp", "f", c.hidden)
    N, H = Axis("heads", "n", c.heads), Axis("head", "h", c.head_dim)

    def both(name: str, dims: Dims, layout: str, kept: Dims | Axis, contract: tuple[str, ...]) -> Linear:
        bias = "(n h) -> n h" if isinstance(kept, Dims) else None
        return Linear(
            param(dims, name + ".weight", layout, contract=contract), param(kept, name + ".bias", bias, init="zeros")
        )

    def norm(name: str) -> Linear:
        return Linear(param(D, name + ".weight", init="ones"), param(D, name + ".bias", init="zeros"))

    def layer(at: str) -> Block:
        heads = partial(both, dims=D | N | H, layout="(n h) d -> d n h", kept=N | H, contract=("embed",))
        return Block(
            q=heads(at + "attention.self.query"),
            k=heads(at + "attention.self.key"),
            v=heads(at + "attention.self.value"),
            out=both(at + "attention.output.dense", N | H | D, "d (n h) -> n h d", D, ("heads", "head")),
            attention_norm=norm(at + "attention.output.LayerNorm"),
            up=both(at + "intermediate.dense", D | F, "f d -> d f", F, ("embed",)),
            down=both(at + "output.dense", F | D, "d f -> f d", D, ("mlp",)),
            mlp_norm=norm(at + "output.LayerNorm"),
        )

    dense = score = None
    if c.score is not None:
        E, S = Axis("pooled", "e", c.width), Axis("labels", "o", c.labels)
        first, second = CLASSIFIERS[c.score]
        dense = both(first, D | E, "e d -> d e", E, ("embed",))
        score = both(second, E | S, "o e -> e o", S, ("pooled",))
    tables = {"word": c.vocab_size, "position": c.max_position + c.first_position, "token_type": c.types}
    words, positions, types = (
        param(Axis("vocab", "v", size) | D, f"embeddings.{name}_embeddings.weight") for name, size in tables.items()
    )
    blocks = stacked(c.layers, layer, "encoder.layer.{}.")
    return Weights(words, positions, types, norm("embeddings.LayerNorm"), blocks, dense, score)


def block(c: Config, step: Step, w: Block, x: Array) -> Array:
    """One layer: `x` [t, d] -> [t, d]. Norms come after the residuals."""
    plain, residual = Around(real=step.real), Around(add=x, real=step.real)
    parts = (w.q, w.k, w.v)
    q, k, v = linears(("td,dnh->tnh",) * 3, x, [part.weight for part in parts], [part.bias for part in parts], plain)
    y = attend_all(q, k, v, step, scale=c.head_dim**-0.5)
    x = _normed(c, w.attention_norm, linear("tnh,nhd->td", y, w.out.weight, w.out.bias, residual))
    opened = ACTIVATIONS[c.activation](linear("td,df->tf", x, w.up.weight, w.up.bias, plain))
    residual = Around(add=x, real=step.real)
    return _normed(c, w.mlp_norm, linear("tf,fd->td", opened, w.down.weight, w.down.bias, residual))


def forward(w: Weights, c: Config, tokens: Array, types: Array, step: Step) -> Array:
    """Packed `tokens` i32[t] and their `types` i32[t] to the last states [t, d]; each row of `step` a whole text.

    A padding token inside a text counts as any other.
    """
    table = rows_of(w.positions, step.positions + c.first_position)
    # A model with one type has it for both texts of a pair.
    x = rows_of(w.words, tokens) + table + rows_of(w.types, jnp.minimum(types, c.types - 1))
    x = _normed(c, w.norm, x)
    return run_layers(partial(block, c, step), w.blocks, x, c.layers)


def score(w: Weights, c: Config, x: Array) -> Array:
    """The classifier's output float32 [s, o] for the first tokens' states `x` [s, d]."""
    assert w.dense is not None and w.score is not None
    opened = jnp.tanh(linear("sd,de->se", x, w.dense.weight, w.dense.bias))
    return dot("se,eo->so", opened, w.score.weight, dtype=jnp.float32) + w.score.bias.astype(jnp.float32)


def _normed(c: Config, norm: Linear, x: Array) -> Array:
    return layer_norm(x, norm.weight, norm.bias, c.norm_eps)
