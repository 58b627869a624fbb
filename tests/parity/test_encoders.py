"""Models that pool against transformers, in float32, from one tiny checkpoint that transformers wrote."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from slipstream.checkpoint import open_checkpoint
from slipstream.kernels.ragged import Kernels
from slipstream.spec.source import Answers, Pooling, PoolingKind
from tests.models.encoders import (
    CLASSIFIERS,
    ENCODERS,
    LABELS,
    ONE_LABEL,
    RERANKERS,
    Encoded,
    engine_of,
    renormalised,
    text_of,
    vectors,
)
from tests.models.harness import difference
from tests.models.variants import VARIANTS
from tests.parity import encoders as reference
from tests.parity.reference import write_checkpoint

TOLERANCE = 1e-4
LENGTHS = (41, 1, 160, 7)  # one crosses a block of attention, one is a token
POOLED = {"cls": lambda x: x[0], "mean": lambda x: x.mean(0), "last": lambda x: x[-1]}


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("kernels", ["reference", "cpu"])
def test_states_equal_transformers(name: str, kernels: Kernels, tmp_path: Path) -> None:
    """Texts of unequal lengths, packed into one step with padding behind them, beside each of them alone."""
    theirs = reference.write_encoder(ENCODERS[name], tmp_path)
    ours = Encoded.of(open_checkpoint(tmp_path), kernels)
    texts = [text_of(ours.model.config.vocab_size, n) for n in LENGTHS]
    second = [5 if ours.model.config.types > 1 and len(text) > 5 else len(text) for text in texts]
    found = ours.states(texts, 250, second)
    ends = np.cumsum((0, *LENGTHS))
    for text, split, (start, end) in zip(texts, second, pairwise(ends), strict=True):
        assert difference(found[start:end], reference.states(theirs, text, split)) < TOLERANCE


@pytest.mark.parametrize("kind", POOLED)
def test_vectors_of_the_engine(kind: PoolingKind, tmp_path: Path) -> None:
    """An engine's vectors of concurrent texts: transformers' states, pooled and normalised by numpy."""
    theirs = reference.write_encoder(ENCODERS["bert"], tmp_path)
    engine = engine_of(open_checkpoint(tmp_path), pooling=Pooling(kind, normalize=True))
    texts = [text_of(97, n) for n in LENGTHS]
    for text, found in zip(texts, vectors(engine, texts), strict=True):
        expected = POOLED[kind](reference.states(theirs, text))
        assert difference(found[None], expected[None]) < TOLERANCE
        assert np.abs(renormalised(found) - renormalised(expected)).max() < TOLERANCE


@pytest.mark.parametrize("name", RERANKERS)
def test_scores_of_pairs(name: str, tmp_path: Path) -> None:
    theirs = reference.write_encoder(RERANKERS[name], tmp_path)
    engine = engine_of(open_checkpoint(tmp_path))
    texts, second = [text_of(89, n) for n in (20, 12, 33)], [7, 3, 30]
    if theirs.config.type_vocab_size == 1:
        second = [None] * 3
    found = vectors(engine, texts, second)
    for text, split, score in zip(texts, second, found, strict=True):
        assert abs(float(score[0]) - reference.score(theirs, text, split)) < TOLERANCE


def test_a_decoder_that_scores(tmp_path: Path) -> None:
    """A Qwen 3 with one label, as rerankers made of it are saved: the last token's state, times the label's weights."""
    config = {**VARIANTS["qwen3"], **ONE_LABEL, "architectures": ["Qwen3ForSequenceClassification"]}
    theirs = reference.write_decoder(config, tmp_path)
    engine = engine_of(open_checkpoint(tmp_path))
    assert engine.info.pooling is not None and engine.info.pooling.task == "score"
    texts = [text_of(config["vocab_size"], n) for n in (20, 3)]
    for text, found in zip(texts, vectors(engine, texts), strict=True):
        assert abs(float(found[0]) - reference.score(theirs, text)) < TOLERANCE


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_decoder_without_its_head(name: str, tmp_path: Path) -> None:
    """As sentence-transformers saves it (Qwen3-Embedding): no head, and names that do not begin with `model.`."""
    folder = tmp_path / "bare"
    theirs = write_checkpoint(VARIANTS[name], tmp_path / "whole")
    theirs.model.save_pretrained(folder)
    engine = engine_of(open_checkpoint(folder))
    text = text_of(VARIANTS[name]["vocab_size"], 20)
    [found] = vectors(engine, [text])
    assert difference(found[None], reference.decoder_states(theirs, text)[-1:]) < TOLERANCE


@pytest.mark.parametrize("name", [name for name in VARIANTS if name in ("llama", "gemma3", "qwen3")])
def test_a_decoder_that_pools(name: str, tmp_path: Path) -> None:
    """The last token's state after the final norm; prompts in chunks, the second one's start from the prefix cache."""
    config = VARIANTS[name]
    theirs = write_checkpoint(config, tmp_path)
    engine = engine_of(open_checkpoint(tmp_path), runner="pooling", max_batched_tokens=32, page_size=4)
    long = text_of(config["vocab_size"], 70)
    texts = [long, text_of(config["vocab_size"], 5), [*long[:50], 3]]
    for text, found in zip(texts, vectors(engine, texts), strict=True):
        assert difference(found[None], reference.decoder_states(theirs, text)[-1:]) < TOLERANCE
    assert difference(vectors(engine, texts[2:])[0][None], reference.decoder_states(theirs, texts[2])[-1:]) < TOLERANCE
    assert engine.stats().prefix_hits >= 48


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_shares_of_labels(name: str, tmp_path: Path) -> None:
    theirs = reference.write_encoder(CLASSIFIERS[name], tmp_path)
    engine = engine_of(open_checkpoint(tmp_path))
    several = CLASSIFIERS[name].get("problem_type") == "multi_label_classification"
    texts = [text_of(89, n) for n in (20, 3)]
    for text, found in zip(texts, vectors(engine, texts), strict=True):
        assert np.abs(found - reference.shares(theirs, text, several=several)).max() < TOLERANCE


def test_a_decoder_that_classifies(tmp_path: Path) -> None:
    config = {**VARIANTS["llama"], **LABELS, "architectures": ["LlamaForSequenceClassification"]}
    theirs = reference.write_decoder(config, tmp_path)
    engine = engine_of(open_checkpoint(tmp_path))
    texts = [text_of(config["vocab_size"], n) for n in (20, 3)]
    for text, found in zip(texts, vectors(engine, texts), strict=True):
        assert np.abs(found - reference.shares(theirs, text, several=False)).max() < TOLERANCE


@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
def test_a_decoder_that_answers(name: str, tmp_path: Path) -> None:
    """As Qwen3-Reranker's card does it: of the logits of `no` and `yes` the softmax's second. Gemma 2 caps its
    logits."""
    theirs = write_checkpoint(VARIANTS[name], tmp_path)
    asked = Pooling("last", normalize=False, answers=Answers(yes=11, no=3))
    engine = engine_of(open_checkpoint(tmp_path), pooling=asked)
    texts = [text_of(VARIANTS[name]["vocab_size"], n) for n in (20, 3)]
    for text, found in zip(texts, vectors(engine, texts), strict=True):
        assert abs(float(found[0]) - reference.answer(theirs, text, yes=11, no=3)) < TOLERANCE
