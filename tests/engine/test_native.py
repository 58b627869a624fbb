"""The engine on the native kernels, from quantized blocks: the same replies as XLA's kernels give from their values."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slipstream.checkpoint import open_checkpoint, resolve, save_checkpoint
from slipstream.engine.loop import Engine
from slipstream.errors import ConfigError
from slipstream.kernels.native import library
from slipstream.spec.source import Checkpoint
from tests.engine import quantized, tiny
from tests.models.harness import prompt_of, random_source
from tests.models.variants import VARIANTS

pytestmark = pytest.mark.skipif(library.reason() is not None, reason="the native kernels were not built here")

CONFIG = tiny.CONFIG | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_hidden_layers": 3}
RNG = np.random.default_rng(2)
PROMPTS = [RNG.integers(0, 211, size=n).tolist() for n in (1, 3, 17, 40, 70, 5, 33, 12)]


def checkpoint(*, offers_blocks: bool = True) -> Checkpoint:
    return quantized.checkpoint(CONFIG, offers_blocks=offers_blocks)


@pytest.fixture(scope="module", params=[16, 4], ids=["by_head", "by_token"])
def native(request: pytest.FixtureRequest) -> Engine:
    """Pages of 16 tokens let the cache be laid out by head, pages of 4 do not."""
    return tiny.engine(checkpoint(), kernels="cpu", page_size=request.param)


@pytest.fixture(scope="module")
def plain() -> Engine:
    return tiny.engine(checkpoint(offers_blocks=False))


def test_weights_stay_in_blocks(native: Engine, plain: Engine) -> None:
    assert native.info.weight_bytes < 0.3 * plain.info.weight_bytes


def test_replies_and_log_probabilities_equal_those_of_xla(native: Engine, plain: Engine) -> None:
    requests = [tiny.request(str(i), p, max_tokens=12, logprobs=3, prompt_logprobs=1) for i, p in enumerate(PROMPTS)]
    ours, theirs = tiny.run(native, requests), tiny.run(plain, requests)
    for name, outputs in theirs.items():
        assert tiny.tokens(ours[name]) == tiny.tokens(outputs)
        for a, b in zip(ours[name], outputs, strict=True):
            pairs = [*zip(a.logprobs or [], b.logprobs or [], strict=True)]
            pairs += [*zip(a.prompt_logprobs or [], b.prompt_logprobs or [], strict=True)]
            assert pairs
            assert max(abs(x.logprob - y.logprob) for x, y in pairs) < 2e-3


def test_floats_are_multiplied_as_they_are_stored(plain: Engine) -> None:
    kinds = ["F32", "F16", "BF16"]  # by turns, within a stack too
    requests = [tiny.request(str(i), p, max_tokens=12, logprobs=3) for i, p in enumerate(PROMPTS)]
    ours = tiny.engine(quantized.checkpoint(CONFIG, kinds=kinds), kernels="cpu")
    theirs = tiny.engine(quantized.checkpoint(CONFIG, kinds=kinds, offers_blocks=False))
    assert 0.6 < ours.info.weight_bytes / theirs.info.weight_bytes < 0.75  # (4 + 2 + 2) / 12 of it are matrices
    for (name, ours_said), theirs_said in zip(
        tiny.run(ours, requests).items(), tiny.run(theirs, requests).values(), strict=True
    ):
        assert tiny.tokens(ours_said) == tiny.tokens(theirs_said), name
        for a, b in zip(ours_said, theirs_said, strict=True):
            for x, y in zip(a.logprobs or [], b.logprobs or [], strict=True):
                assert abs(x.logprob - y.logprob) < 1e-4


def test_gemma_gives_the_64_greedy_tokens_of_transformers() -> None:
    """Recorded in float32 (tests/golden/make_models.py). Its file mixes four block types, within a stack too."""
    records = json.loads((Path(__file__).parents[1] / "golden" / "models" / "real.json").read_text())["gemma3-270m"]
    source = open_checkpoint(resolve("gemma3-270m"))
    engine = tiny.engine(source, kernels="cpu", page_size=16, max_model_len=96, kv_bytes=2**24)
    requests = [tiny.request(str(i), record["prompt"], max_tokens=64) for i, record in enumerate(records)]
    outputs = tiny.run(engine, requests)
    assert [tiny.tokens(outputs[str(i)]) for i in range(len(records))] == [record["greedy"] for record in records]
    assert engine.info.weight_bytes < 1.1 * source.path.stat().st_size, "all matrices stay in blocks"


def test_parts_of_fused_tensors_stay_as_they_are_stored(tmp_path: Path) -> None:
    """Phi 3's queries, keys and values are one tensor: each is packed alone, and transformers' tokens come out."""
    config = VARIANTS["phi3-tied-mqa-partial"]
    save_checkpoint(random_source(config), tmp_path, config)
    engine = tiny.engine(open_checkpoint(tmp_path), kernels="cpu", page_size=16)
    recorded = np.load(Path(__file__).parents[1] / "golden" / "models" / "phi3.npz")["phi3-tied-mqa-partial/greedy"]
    outputs = tiny.run(engine, [tiny.request("a", prompt_of(config["vocab_size"], 41), max_tokens=64)])
    assert tiny.tokens(outputs["a"]) == recorded.tolist()
    stored = (tmp_path / "model.safetensors").stat().st_size
    assert engine.info.weight_bytes < 1.4 * stored, "panels of 16 outputs are filled up, and nothing is kept twice"


def test_fast_is_close(plain: Engine) -> None:
    fast = tiny.engine(checkpoint(), kernels="cpu", cpu_precision="fast", page_size=16)
    exact = tiny.run(plain, [tiny.request("a", PROMPTS[4], prompt_logprobs=0)])["a"][0].prompt_logprobs
    rough = tiny.run(fast, [tiny.request("a", PROMPTS[4], prompt_logprobs=0)])["a"][0].prompt_logprobs
    assert exact is not None
    assert rough is not None
    off = max(abs(x.logprob - y.logprob) for x, y in zip(exact, rough, strict=True))
    assert 1e-4 < off < 0.2, "8 bits are seen, and do little harm"


def test_asked_for_and_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(library, "reason", lambda: "the native CPU kernels were not built: install g++")
    with pytest.raises(ConfigError, match="install g\\+\\+"):
        tiny.engine(checkpoint(), kernels="cpu")
    assert tiny.engine(replace(checkpoint(offers_blocks=False)), kernels="auto", max_seqs=1, max_batched_tokens=8).info
    assert [r.message for r in caplog.records if "install g++" in r.message], "auto says it once, and goes on with XLA"
