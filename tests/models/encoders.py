"""Small configs of models that pool, as config.json would say them, and one forward of them: for tests and goldens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slipstream.api.engine import POOLED, EngineRequest
from slipstream.checkpoint import RandomSource, load
from slipstream.checkpoint.placement import Placement
from slipstream.engine.config import EngineConfig
from slipstream.engine.loop import Engine
from slipstream.engine.pooling import PoolingModel, pooling_model
from slipstream.engine.start import start
from slipstream.kernels.native import library
from slipstream.kernels.ragged import Kernels, Step
from slipstream.models.registry import encoder
from slipstream.spec.source import Checkpoint, GenerationDefaults, Pooling

BERT: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 300,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
ROBERTA = {
    **BERT,
    "model_type": "roberta",
    "architectures": ["RobertaModel"],
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "max_position_embeddings": 302,
}
ONE_LABEL = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}

ENCODERS: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "bert-tanh-odd": {**BERT, "hidden_act": "gelu_new", "hidden_size": 27, "num_attention_heads": 3, "vocab_size": 89,
                      "intermediate_size": 35, "num_hidden_layers": 1, "layer_norm_eps": 1e-5},
    "bert-relu": {**BERT, "hidden_act": "relu"},
    "roberta": ROBERTA,
    "xlm-roberta": {**ROBERTA, "model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"], "pad_token_id": 3,
                    "max_position_embeddings": 304},
}  # fmt: skip
RERANKERS: dict[str, dict[str, Any]] = {
    "bert": {**BERT, **ONE_LABEL, "architectures": ["BertForSequenceClassification"]},
    "xlm-roberta": {**ENCODERS["xlm-roberta"], **ONE_LABEL, "architectures": ["XLMRobertaForSequenceClassification"]},
}

LABELS = {"id2label": {"0": "bad", "1": "fair", "2": "good"}, "label2id": {"bad": 0, "fair": 1, "good": 2}}
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "bert": {**BERT, **LABELS, "architectures": ["BertForSequenceClassification"]},
    "roberta": {**ROBERTA, **LABELS, "architectures": ["RobertaForSequenceClassification"],
                "problem_type": "multi_label_classification"},
}  # fmt: skip

LENGTH, SECOND, POSITIONS = 150, 70, (0, 69, 70, 149)
"""Of the text that the goldens have, where its second part begins, and the positions whose states they hold."""

MINILM: dict[str, Any] = {
    **BERT,
    "vocab_size": 300,
    "max_position_embeddings": 64,
    "num_hidden_layers": 2,
}
"""What the tests of engine and server serve."""


def random_checkpoint(config: Mapping[str, Any], *, pooling: Pooling | None = None, seed: int = 0) -> Checkpoint:
    """Weights that depend on the seed and on each tensor's name alone, under the plan's own names."""
    row = encoder(config)
    assert row is not None
    source = RandomSource(row.plan(row.from_hf(config)), seed, jitter=0.3)
    return Checkpoint(Path("tiny"), config, source, None, GenerationDefaults(), pooling)


@dataclass(frozen=True)
class Encoded:
    """An encoder with its weights."""

    model: PoolingModel
    weights: Any
    kernels: Kernels

    @classmethod
    def of(cls, checkpoint: Checkpoint, kernels: Kernels = "reference") -> Encoded:
        assert kernels != "cpu" or library.reason() is None, library.reason()
        model = pooling_model(checkpoint)
        place = Placement(jax.local_devices()[0], np.dtype(np.float32), kernels == "cpu", "exact")
        weights = load(
            model.plan,
            model.source,
            place.place,
            place_blocks=place.place_blocks,
            allowed_unused=model.unread,
        )
        return cls(model, weights, kernels)

    def score(self, text: Sequence[int], second: int | None) -> float:
        """A reranker's score of a pair."""
        states = self.states([text], LENGTH, [len(text) if second is None else second])
        return float(self.model.finish(self.weights, jnp.asarray(states[:1]))[0, 0])

    def states(self, texts: Sequence[Sequence[int]], width: int, second: Sequence[int] | None = None) -> np.ndarray:
        """The last states of all texts, packed in one step of `width` tokens; padding is cut off.

        `second`: where each text's second part begins.
        """
        counts = np.asarray([len(text) for text in texts], np.int32)
        starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
        tokens = np.zeros(width, np.int32)
        tokens[: starts[-1]] = [token for text in texts for token in text]
        pages = jnp.zeros((len(texts), 1), jnp.int32)
        step = Step.of(jnp.asarray(starts), jnp.asarray(counts), pages, width, kernels=self.kernels)
        ends = np.asarray(second if second is not None else counts, np.int32)
        types = (step.positions >= ends[np.minimum(step.rows, len(texts) - 1)]).astype(jnp.int32)

        return np.asarray(self.compiled(self.weights, tokens, types, step))[: starts[-1]]

    @cached_property
    def compiled(self) -> Callable[..., jax.Array]:
        """The states of one step."""
        return jax.jit(
            lambda w, tokens, types, step: self.model.states(w, self.model.config, tokens, types, step, None)[0]
        )


def renormalised(vector: np.ndarray) -> np.ndarray:
    """A vector of length 1."""
    return vector / np.linalg.norm(vector)


def text_of(vocab_size: int, length: int, seed: int = 0) -> list[int]:
    """Random token ids from 4 on: RoBERTa in transformers counts a padding token's id inside a text for none."""
    return np.random.default_rng([seed, length]).integers(4, vocab_size, length).tolist()


def engine_of(checkpoint: Checkpoint, *, pooling: Pooling | None = None, **settings: Any) -> Engine:
    """A small engine that pools in float32, with the reference kernels."""
    defaults: dict[str, Any] = {
        "max_seqs": 4, "max_batched_tokens": 64, "compile_cache": "", "kernels": "reference", "kv_dtype": "float32"
    }  # fmt: skip
    given = checkpoint if pooling is None else replace(checkpoint, pooling=pooling)
    return start(given, EngineConfig(**(defaults | settings)))


def vectors(
    engine: Engine, texts: Sequence[Sequence[int]], second: Sequence[int | None] | None = None
) -> list[np.ndarray]:
    """The engine's vectors of texts that run together."""
    for i, text in enumerate(texts):
        split = None if second is None else second[i]
        engine.add(EngineRequest(id=str(i), prompt_token_ids=list(text), sampling=POOLED, second_from=split))
    found: dict[str, np.ndarray] = {}
    while engine.has_work:
        for output in engine.step():
            assert output.pooled is not None and output.finish_reason == "stop" and not output.token_ids
            found[output.id] = np.frombuffer(output.pooled, "<f4")
    return [found[str(i)] for i in range(len(texts))]
