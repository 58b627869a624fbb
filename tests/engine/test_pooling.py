"""Engines that make vectors: batches, limits, poolings, caches, and what is chosen for a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from slipstream.api.engine import POOLED, EngineRequest, PoolingInfo
from slipstream.engine.build_pooling import longest_text, matryoshka, settings_for
from slipstream.engine.config import EngineConfig
from slipstream.engine.loop import Engine
from slipstream.engine.pooling import pooling_model
from slipstream.engine.start import task_of
from slipstream.errors import CheckpointError, ConfigError, PromptTooLong
from slipstream.spec.source import Pooling
from tests.engine import tiny
from tests.models.encoders import MINILM, Encoded, engine_of, random_checkpoint, renormalised, text_of, vectors

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
    assert (small.max_batched_tokens, small.page_size, small.prefix_caching) == (60, 61, False)


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
