"""Encoders against transformers' recorded numbers, and against themselves in other batches."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from slipstream.errors import CheckpointError, UnknownConfigKeys, UnsupportedModel
from slipstream.kernels.bidirectional import attend_all
from slipstream.kernels.ragged import Step
from slipstream.models.encoder.bert import Config, Weights
from slipstream.models.registry import encoder, family
from slipstream.models.scores import activation_of, labels
from slipstream.spec.param import params
from tests.models.encoders import (
    BERT,
    ENCODERS,
    LENGTH,
    POSITIONS,
    RERANKERS,
    ROBERTA,
    SECOND,
    Encoded,
    engine_of,
    random_checkpoint,
    text_of,
)
from tests.models.harness import difference

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "models" / "encoders.npz")
TOLERANCE = 1e-4


@pytest.mark.parametrize("name", ENCODERS)
def test_recorded_states(name: str) -> None:
    config = ENCODERS[name]
    ours = Encoded.of(random_checkpoint(config), "reference")
    text = text_of(config["vocab_size"], LENGTH)
    second = SECOND if config["type_vocab_size"] > 1 else LENGTH
    found = ours.states([text], 160, [second])[list(POSITIONS)]
    assert difference(found, GOLDEN[f"{name}/states"]) < TOLERANCE


@pytest.mark.parametrize("name", RERANKERS)
def test_recorded_scores(name: str) -> None:
    config = RERANKERS[name]
    second = SECOND if config["type_vocab_size"] > 1 else None
    found = Encoded.of(random_checkpoint(config)).score(text_of(config["vocab_size"], LENGTH), second)
    assert abs(found - float(GOLDEN[f"{name}/score"])) < TOLERANCE


def test_attention_of_packed_rows() -> None:
    """Rows that begin and end anywhere in blocks of keys, an empty one among them, against a plain softmax."""
    counts = [3, 200, 0, 1, 130, 40]
    random = np.random.default_rng(3)
    width, total = 420, sum(counts)
    q, k, v = (random.standard_normal((width, 3, 8)).astype(np.float32) for _ in range(3))
    k[total:], v[total:] = np.nan, np.nan  # padding reaches nothing
    starts = np.cumsum([0, *counts]).astype(np.int32)
    step = Step.of(jnp.asarray(starts), jnp.asarray(counts, jnp.int32), jnp.zeros((6, 1), jnp.int32), width)
    found = np.asarray(attend_all(*(jnp.asarray(x) for x in (q, np.nan_to_num(k), np.nan_to_num(v))), step, scale=0.3))
    for a, b in pairwise(starts):
        scores = np.einsum("tnh,cnh->ntc", q[a:b], k[a:b]).astype(np.float64) * 0.3
        weights = np.exp(scores - scores.max(-1, keepdims=True, initial=-1e30))
        expected = np.einsum("ntc,cnh->tnh", weights / weights.sum(-1, keepdims=True), v[a:b])
        np.testing.assert_allclose(found[a:b], expected, atol=2e-6)
    assert not found[total:].any()


def test_plan_shapes() -> None:
    c = Config.from_hf(RERANKERS["bert"])
    row = encoder(RERANKERS["bert"])
    assert row is not None
    weights: Weights = row.plan(c)
    assert {path: param.shape for path, param in params(weights)} == {
        "words": (97, 24),
        "positions": (300, 24),
        "types": (2, 24),
        "norm.weight": (24,),
        "norm.bias": (24,),
        **{f"blocks.{name}.weight": (3, 24, 4, 6) for name in "qkv"},
        **{f"blocks.{name}.bias": (3, 4, 6) for name in "qkv"},
        "blocks.out.weight": (3, 4, 6, 24),
        "blocks.out.bias": (3, 24),
        **{f"blocks.{name}.{part}": (3, 24) for name in ("attention_norm", "mlp_norm") for part in ("weight", "bias")},
        "blocks.up.weight": (3, 24, 40),
        "blocks.up.bias": (3, 40),
        "blocks.down.weight": (3, 40, 24),
        "blocks.down.bias": (3, 24),
        "dense.weight": (24, 24),
        "dense.bias": (24,),
        "score.weight": (24, 1),
        "score.bias": (1,),
    }


def test_configs_that_are_refused() -> None:
    with pytest.raises(UnknownConfigKeys, match=r"rotary_share \(bert\)"):
        Config.from_hf({**BERT, "rotary_share": 0.5})
    with pytest.raises(UnsupportedModel, match="position_embedding_type to 'relative_key'"):
        Config.from_hf({**BERT, "position_embedding_type": "relative_key"})
    with pytest.raises(UnsupportedModel, match="hidden_act to 'mish'; Slipstream computes gelu, "):
        Config.from_hf({**BERT, "hidden_act": "mish"})
    with pytest.raises(CheckpointError, match="id2label must name the labels from 0 on"):
        Config.from_hf({**RERANKERS["bert"], "id2label": {"0": "a", "2": "c"}})
    with pytest.raises(UnsupportedModel, match=r"asks for scores by torch\.Tanh; Slipstream computes torch"):
        activation_of({**RERANKERS["bert"], "sbert_ce_default_activation_function": "torch.Tanh"})
    with pytest.raises(UnknownConfigKeys, match=r"sentence_transformers\.bias \(reranker\)"):
        activation_of({**RERANKERS["bert"], "sentence_transformers": {"bias": 1}})
    with pytest.raises(UnsupportedModel, match=r"not a model that Slipstream serves.*the nearest is BertModel"):
        family({**BERT, "architectures": ["BertMod"]})


def test_what_a_reranker_says_of_its_activation() -> None:
    """sentence-transformers names it in two ways; a published reranker of MiniLM has the first."""
    identity = "torch.nn.modules.linear.Identity"
    config = {**RERANKERS["bert"], "sentence_transformers": {"activation_fn": identity, "version": "4.1.0"}}
    assert activation_of(config) == identity
    config = {**RERANKERS["bert"], "sbert_ce_default_activation_function": identity}
    assert activation_of(config) == identity
    assert Config.from_hf(config).score == "bert"
    assert activation_of(RERANKERS["bert"]) == "torch.nn.modules.activation.Sigmoid"


def test_labels() -> None:
    """Their order is that of their numbers; without names there are two, as in transformers."""
    config = {**RERANKERS["bert"], "id2label": {f"{i}": f"label {i}" for i in (0, 10, *range(1, 10))}}
    assert labels(config) == tuple(f"label {i}" for i in range(11))
    assert Config.from_hf(config).labels == 11
    assert labels({**BERT, "architectures": ["BertForSequenceClassification"]}) == ("LABEL_0", "LABEL_1")
    assert labels(BERT) is None
    softmax, sigmoid = (f"torch.nn.modules.activation.{name}" for name in ("Softmax", "Sigmoid"))
    assert activation_of(config) == softmax
    assert activation_of({**config, "problem_type": "multi_label_classification"}) == sigmoid
    assert activation_of({**config, "problem_type": "regression"}) == "torch.nn.modules.linear.Identity"


def test_positions_of_roberta_begin_behind_the_padding_token() -> None:
    c = Config.from_hf(ROBERTA)
    assert (c.first_position, c.max_position) == (2, 300)


def test_names_of_old_and_of_larger_checkpoints() -> None:
    row = encoder(BERT)
    assert row is not None
    assert row.rename("bert.embeddings.LayerNorm.gamma") == "embeddings.LayerNorm.weight"
    assert row.rename("encoder.layer.0.output.LayerNorm.beta") == "encoder.layer.0.output.LayerNorm.bias"
    assert row.rename("classifier.weight") == "classifier.weight"


def test_a_checkpoint_that_lacks_a_tensor() -> None:
    checkpoint = random_checkpoint(BERT)
    with pytest.raises(CheckpointError, match=r"classifier\.weight"):
        engine_of(type(checkpoint)(**{**vars(checkpoint), "config": RERANKERS["bert"]}))
