"""Engines whose KV caches have narrow types: near float32, and the same alone and in any batch."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from slipstream.api.engine import TokenOutput
from slipstream.engine.loop import Engine
from slipstream.kernels.native import library
from tests.engine import quantized, tiny

CONFIG = tiny.CONFIG | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_hidden_layers": 3}
RNG = np.random.default_rng(2)
PROMPTS = [RNG.integers(0, 211, size=n).tolist() for n in (1, 17, 40, 70)]
KERNELS = ["reference"] if library.reason() is not None else ["reference", "cpu"]
# Mean error of log probabilities, twice what was measured with both kernels: 3.1e-4, 2.7e-3, 7.5e-3. Random
# weights make large scores; real ones err less (see `slipstream bench accuracy`).
NEAR = {"float16": 6e-4, "bfloat16": 5.5e-3, "int8": 1.5e-2}


@cache
def engine(kernels: str, kv_dtype: str) -> Engine:
    source = quantized.checkpoint(CONFIG, offers_blocks=kernels == "cpu")
    return tiny.engine(source, kernels=kernels, kv_dtype=kv_dtype, page_size=16)


def outputs(engine: Engine) -> dict[str, list[TokenOutput]]:
    wants = {"temperature": 1.0, "max_tokens": 6, "logprobs": 2, "prompt_logprobs": 0}
    return tiny.run(engine, [tiny.request(str(i), p, seed=i, **wants) for i, p in enumerate(PROMPTS)])


@pytest.mark.parametrize("kv_dtype", list(NEAR))
@pytest.mark.parametrize("kernels", KERNELS)
def test_log_probabilities_are_near_those_of_float32(kernels: str, kv_dtype: str) -> None:
    exact, rounded = outputs(engine(kernels, "float32")), outputs(engine(kernels, kv_dtype))
    off = [
        abs(x.logprob - y.logprob)
        for name, replies in exact.items()
        for x, y in zip(replies[0].prompt_logprobs or [], rounded[name][0].prompt_logprobs or [], strict=True)
    ]
    assert len(off) == sum(len(prompt) - 1 for prompt in PROMPTS)
    assert 0 < np.mean(off) < NEAR[kv_dtype]


@pytest.mark.skipif(library.reason() is not None, reason="the native kernels were not built here")
@pytest.mark.parametrize("kv_dtype", list(NEAR))
def test_logits_are_bit_equal_alone_and_in_a_batch(kv_dtype: str) -> None:
    together = outputs(engine("cpu", kv_dtype))
    wants = {"temperature": 1.0, "max_tokens": 6, "logprobs": 2, "prompt_logprobs": 0}
    for i, prompt in enumerate(PROMPTS):
        [alone] = tiny.run(engine("cpu", kv_dtype), [tiny.request(str(i), prompt, seed=i, **wants)]).values()
        assert [o.logprobs for o in alone] == [o.logprobs for o in together[str(i)]]
        assert alone[0].prompt_logprobs == together[str(i)][0].prompt_logprobs
