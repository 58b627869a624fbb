"""The engine on several devices gives the tokens that it gives on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slipstream.api.engine import EngineRequest
from slipstream.api.sampling import TokenSampling
from slipstream.checkpoint import RandomSource
from slipstream.engine.build import build
from slipstream.engine.config import EngineConfig
from slipstream.errors import ConfigError
from slipstream.models.registry import family
from slipstream.spec.source import Answers, Checkpoint, GenerationDefaults, Pooling
from tests.models.encoders import BERT, CLASSIFIERS, engine_of, random_checkpoint, vectors
from tests.parallel.eight.check_families import config_of

PROMPTS = ([5, 6, 7, 8, 9], [11, 12], [3, 1, 4, 1, 5, 9, 2, 6], [20])


def checkpoint(name: str = "llama") -> Checkpoint:
    config = config_of(name)
    chosen = family(config)
    source = RandomSource(chosen.plan(chosen.from_hf(config)), jitter=0.3)
    return Checkpoint(Path("tiny"), config, source, None, GenerationDefaults())


def replies(name: str = "llama", **asked: Any) -> tuple[dict[str, list[int]], Any]:
    limits = {"max_seqs": 1, "max_batched_tokens": 4, "max_model_len": 32, "kv_dtype": "float32"}
    settings = {**limits, "kernels": "reference", "compile_cache": "", "weight_cache": "", **asked}
    engine = build(checkpoint(name), EngineConfig(**settings))
    for i, prompt in enumerate(PROMPTS):
        # One is drawn, the others are greedy.
        sampling = TokenSampling(max_tokens=9, temperature=0.8 if i == 1 else 0.0, seed=7)
        engine.add(EngineRequest(id=str(i), prompt_token_ids=list(prompt), sampling=sampling))
    found: dict[str, list[int]] = {str(i): [] for i in range(len(PROMPTS))}
    while engine.has_work:
        for output in engine.step():
            found[output.id] += output.token_ids
    stats = engine.stats()
    assert stats.compiles_after_ready == 0
    assert stats.generation_tokens == 9 * len(PROMPTS)
    assert (stats.running, stats.waiting) == (0, 0)
    return found, engine.info


def test_replicas_of_sharded_models_reply_as_one_device_does() -> None:
    alone, one = replies()
    together, info = replies(tp=2, dp=2)
    assert together == alone
    assert (one.num_devices, info.num_devices, info.max_seqs) == (1, 4, 2 * one.max_seqs)
    assert info.kv_bytes * 2 == one.kv_bytes  # Of a device: half the heads of as many pages.


@pytest.mark.parametrize(
    ("name", "kv_dtype", "asked"),
    [
        ("llama", "float32", {"kernels": "pallas_tpu", "tp": 2}),
        ("llama", "float32", {"kernels": "pallas_gpu"}),
        pytest.param("deepseek_v3", "int8", {"kernels": "pallas_tpu", "tp": 2}, marks=pytest.mark.long),
    ],
)
def test_interpreted_kernels_reply_as_the_reference_does(name: str, kv_dtype: str, asked: dict[str, Any]) -> None:
    expected, plain = replies(name, kv_dtype=kv_dtype)
    found, info = replies(name, kv_dtype=kv_dtype, **asked)
    assert found == expected
    assert (plain.page_size, info.page_size) == (16, 128 if kv_dtype == "int8" else 64)


@pytest.mark.long
def test_weights_laid_out_as_the_compiler_would_have_them_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What engines do on a TPU."""
    monkeypatch.setattr("slipstream.engine.blueprint._OWN_LAYOUTS", ("cpu",))
    assert replies(tp=2)[0] == replies()[0]


def test_more_devices_than_there_are() -> None:
    with pytest.raises(ConfigError, match=r"need 4 x 4 = 16 devices, there are 8 \(cpu\)"):
        build(checkpoint(), EngineConfig(tp=4, dp=4))


def test_sizes_that_do_not_divide() -> None:
    with pytest.raises(ConfigError, match=r"of 2 key/value heads and 3 devices.*--tp may be 1, 2, 4, 8$"):
        build(checkpoint(), EngineConfig(tp=3))


def test_native_kernels_run_on_one_device() -> None:
    with pytest.raises(ConfigError, match="native CPU kernels run on one device"):
        build(checkpoint(), EngineConfig(tp=2, kernels="cpu"))


@pytest.mark.parametrize("pooled", [None, Pooling("last", normalize=False, answers=Answers(7, 3))])
def test_a_decoder_that_pools(pooled: Pooling | None) -> None:
    """Vectors, and scores by two tokens, are those of one device."""
    texts = [[*prompt, *range(20)] for prompt in PROMPTS]
    found = []
    for asked in ({}, {"tp": 2, "dp": 2}):
        engine = engine_of(checkpoint(), pooling=pooled, runner="pooling", max_model_len=32, max_seqs=2, **asked)
        found.append(vectors(engine, texts))
        assert engine.info.num_devices == (4 if asked else 1)
        assert engine.stats().compiles_after_ready == 0
    np.testing.assert_allclose(found[1], found[0], atol=2e-5 * np.abs(found[0]).max())


def test_an_encoder() -> None:
    texts = [[5, 6, 7, 8, 9], [11, 12], [3, 1, 4, 1, 5, 9, 2, 6], [20]]
    for source in (random_checkpoint(BERT), random_checkpoint(CLASSIFIERS["bert"])):
        alone, together = (
            vectors(engine_of(source, max_model_len=16, **asked), texts) for asked in ({}, {"tp": 2, "dp": 2})
        )
        np.testing.assert_allclose(together, alone, atol=2e-5 * np.abs(alone).max())
    with pytest.raises(ConfigError, match=r"--tp may be 1, 2, 4$"):
        engine_of(random_checkpoint(BERT), tp=3)
