"""Engines that make vectors: batches, limits, poolings, caches, and what is chosen for a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from slipstream.api.engine import POOLED, EngineRequest, PoolingInfo
from slipstream.checkpoint.joined import Joined
from slipstream.checkpoint.renamed import Renamed
from slipstream.checkpoint.safetensors_source import SafetensorsSource
from slipstream.engine.build_pooling import answering, longest_text, matryoshka, settings_for
from slipstream.engine.config import EngineConfig
from slipstream.engine.loop import Engine
from slipstream.engine.pooling import pooling_model
from slipstream.engine.start import task_of
from slipstream.errors import CheckpointError, ConfigError, PromptTooLong
from slipstream.spec.source import Answers, Dense, Pooling, Source
from tests.engine import tiny
from tests.models.encoders import (
    CLASSIFIERS,
    MINILM,
    Encoded,
    engine_of,
    random_checkpoint,
    renormalised,
    text_of,
    vectors,
)

LENGTHS = (7, 64, 1, 30, 2, 64, 13)
BATCHED = 2e-6
"""Of a vector's largest number: a product of more rows may add in another order."""


@pytest.fixture(scope="module")
def engine() -> Engine:
    return engine_of(random_checkpoint(MINILM, pooling=Pooling("mean", normalize=True)))


def texts() -> list[list[int]]:
    return [text_of(MINILM["vocab_size"], n, seed=i) for i, n in enumerate(LENGTHS)]


def test_in_a_batch_as_alone(engine: Engine) -> None:
    """Texts of unequal lengths, more than fit one step, and each of them in an engine that has nothing else."""
    together = vectors(engine, texts())
    for text, found in zip(texts(), together, strict=True):
        [alone] = vectors(engine, [text])
        assert np.abs(found - alone).max() <= BATCHED * np.abs(alone).max()
    stats = engine.stats()
    assert stats.compiles_after_ready == 0
    assert (stats.running, stats.waiting, stats.generation_tokens) == (0, 0, 0)
    assert stats.prompt_tokens == 2 * sum(LENGTHS) == stats.scheduled_tokens


def test_the_mean_of_the_states(engine: Engine) -> None:
    states = Encoded.of(random_checkpoint(MINILM)).states(texts(), sum(LENGTHS))
    ends = np.cumsum((0, *LENGTHS))
    for found, (start, end) in zip(vectors(engine, texts()), pairwise(ends), strict=True):
        np.testing.assert_allclose(found, states[start:end].mean(0), atol=2e-6)


def test_what_it_says_of_itself(engine: Engine) -> None:
    info = engine.info
    assert info.pooling == PoolingInfo(task="embed", size=24, normalize=True, dimensions=None)
    assert (info.max_model_len, info.max_batched_tokens, info.kv_bytes) == (64, 64, 0)


def test_a_text_that_is_too_long(engine: Engine) -> None:
    request = EngineRequest(id="long", prompt_token_ids=[5] * 65, sampling=POOLED)
    with pytest.raises(PromptTooLong):
        engine.add(request)
    assert not engine.has_work


def test_an_abort_leaves_nothing_behind(engine: Engine) -> None:
    for i, text in enumerate(texts()):
        engine.add(EngineRequest(id=str(i), prompt_token_ids=text, sampling=POOLED))
    engine.step()
    for i in range(len(LENGTHS)):
        engine.abort(str(i))
    while engine.has_work:
        assert engine.step() == []
    assert engine.stats().pages_used == 0


def test_texts_may_be_cut_in_training_and_longer_when_asked() -> None:
    cut = random_checkpoint(MINILM, pooling=Pooling("cls", normalize=False, max_tokens=32))
    model = pooling_model(cut)
    assert longest_text(EngineConfig(), model) == 32
    assert longest_text(EngineConfig(max_model_len=60), model) == 60
    with pytest.raises(ConfigError, match="more than the 64 tokens"):
        longest_text(EngineConfig(max_model_len=65), model)
    small = settings_for(EngineConfig(max_batched_tokens=32), model, 60)
    assert (small.max_batched_tokens, small.prefix_caching) == (60, False)


def test_a_language_model_that_pools() -> None:
    """Its last state after the final norm, whose product with the embedding is the next token's logits."""
    engine = engine_of(tiny.checkpoint(), runner="pooling", max_batched_tokens=32, page_size=4)
    prompts = [text_of(211, n) for n in (70, 3, 33)]
    table = tiny.checkpoint().source.read("model.embed_tokens.weight")
    found = vectors(engine, prompts) + vectors(engine, prompts[:1])
    stats = engine.stats()
    assert (stats.compiles_after_ready, stats.prefix_hits) == (0, 68)
    for prompt, vector in zip([*prompts, prompts[0]], found, strict=True):
        np.testing.assert_allclose(vector @ table.T, tiny.full_logits(prompt)[-1], atol=1e-4)


def test_rounded_weights_give_nearly_the_same_vectors(engine: Engine) -> None:
    rounded = engine_of(random_checkpoint(MINILM, pooling=Pooling("mean", normalize=True)), quantization="int8")
    assert rounded.info.weight_bytes < engine.info.weight_bytes
    for whole, near in zip(vectors(engine, texts()), vectors(rounded, texts()), strict=True):
        assert 0.999 < renormalised(whole) @ renormalised(near) < 1 - 1e-9


def test_what_a_checkpoint_is_for() -> None:
    encoder, decoder, auto = random_checkpoint(MINILM), tiny.checkpoint(), EngineConfig()
    assert task_of(encoder, auto) == "pooling"
    assert task_of(decoder, auto) == "generate"
    assert task_of(replace(decoder, pooling=Pooling("last", normalize=True)), auto) == "pooling"
    assert task_of(decoder, EngineConfig(runner="pooling")) == "pooling"
    for name in ("LlamaModel", "LlamaForSequenceClassification"):
        assert task_of(replace(decoder, config=decoder.config | {"architectures": [name]}), auto) == "pooling"
    with pytest.raises(ConfigError, match="tiny has no language model's head"):
        task_of(encoder, EngineConfig(runner="generate"))


def test_sizes_that_vectors_may_be_cut_to() -> None:
    assert matryoshka({}, 8) is None
    assert matryoshka({"is_matryoshka": True}, 8) == ()
    assert matryoshka({"matryoshka_dimensions": [2, 8]}, 8) == (2, 8)
    with pytest.raises(CheckpointError, match="sizes from 1 to 8"):
        matryoshka({"matryoshka_dimensions": [9]}, 8)


def test_a_language_model_that_answers() -> None:
    """The likelihood of one token over another after the text, from two rows of the head."""
    prompts = [text_of(211, n) for n in (70, 3, 33)]
    logits = [tiny.full_logits(prompt)[-1] for prompt in prompts]
    for yes, no in ((7, 150), (150, 7), (9, None)):
        asked = Pooling("last", normalize=False, answers=Answers(yes, no, "as asked"))
        engine = engine_of(tiny.checkpoint(), pooling=asked, max_batched_tokens=32, page_size=4)
        assert engine.info.pooling == PoolingInfo(
            task="score", size=1, normalize=False, labels=("yes",), prompted=True, instruction="as asked"
        )
        over = [row[yes] - (0 if no is None else row[no]) for row in logits]
        np.testing.assert_allclose(np.ravel(vectors(engine, prompts)), 1 / (1 + np.exp(-np.asarray(over))), atol=1e-5)
    with pytest.raises(CheckpointError, match="are not among the model's 211"):
        pooling_model(replace(tiny.checkpoint(), pooling=Pooling("last", normalize=False, answers=Answers(7, 211))))


def test_products_after_the_pooling(engine: Engine, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    first, second, bias = (random.standard_normal(shape).astype(np.float32) for shape in ((10, 24), (3, 10), (10,)))
    whole = random_checkpoint(MINILM)
    parts: list[Source] = [whole.source]
    for name, tensors in (("2_Dense", {"weight": first, "bias": bias}), ("3_Dense", {"weight": second})):
        save_file({f"linear.{key}": value for key, value in tensors.items()}, file := tmp_path / f"{name}.safetensors")
        parts.append(Renamed.of(SafetensorsSource([file]), lambda tensor, name=name: f"{name}.{tensor}"))
    tanh, identity = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"
    dense = Dense("2_Dense", 24, 10, True, tanh), Dense("3_Dense", 10, 3, False, identity)
    pooling = Pooling("mean", normalize=True, dense=dense)
    projected = engine_of(replace(whole, source=Joined(parts), pooling=pooling))
    assert projected.info.pooling is not None and projected.info.pooling.size == 3
    for plain, found in zip(vectors(engine, texts()), vectors(projected, texts()), strict=True):
        np.testing.assert_allclose(found, np.tanh(plain @ first.T + bias) @ second.T, atol=1e-5)
    with pytest.raises(CheckpointError, match="3_Dense takes 10 numbers, and there are 24"):
        pooling_model(replace(whole, pooling=replace(pooling, dense=dense[1:])))
    with pytest.raises(CheckpointError, match="is there twice"):
        Joined([whole.source, whole.source])


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_shares_of_labels(name: str) -> None:
    engine = engine_of(random_checkpoint(CLASSIFIERS[name]), max_model_len=64)
    assert engine.info.pooling is not None
    assert (engine.info.pooling.task, engine.info.pooling.labels) == ("classify", ("bad", "fair", "good"))
    vocab_size = CLASSIFIERS[name]["vocab_size"]
    shares = np.asarray(vectors(engine, [text_of(vocab_size, 7), text_of(vocab_size, 20)]))
    assert shares.shape == (2, 3)
    assert (shares > 0).all() and (shares < 1).all()
    assert np.allclose(shares.sum(-1), 1, atol=1e-5) == (name == "bert")


def test_words_that_are_answers() -> None:
    with pytest.raises(ConfigError, match="two words such as yes,no, of a checkpoint with a tokenizer"):
        answering(tiny.checkpoint(), "yes,no")
    with pytest.raises(ConfigError, match="--answers is for a language model that scores"):
        task_of(random_checkpoint(MINILM), EngineConfig(answers="yes,no"))
    assert task_of(tiny.checkpoint(), EngineConfig(answers="yes,no")) == "pooling"
