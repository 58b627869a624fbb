"""Weights that are rounded when they are loaded: the same replies on XLA and on the native kernels, in less memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from slipstream.checkpoint import open_checkpoint
from slipstream.errors import ConfigError
from slipstream.kernels.native import library
from tests.checkpoint.quantized.files import FORMATS, write
from tests.engine import tiny

PROMPTS = [np.random.default_rng(7).integers(0, 211, size=n).tolist() for n in (3, 17)]
CONFIG = tiny.CONFIG | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}


def replies(**settings: object) -> tuple[list[list[float]], int]:
    """Log probabilities of the prompts' tokens, and the bytes of the weights."""
    engine = tiny.engine(tiny.checkpoint_of(CONFIG), **settings)
    outputs = tiny.run(
        engine, [tiny.request(str(i), p, max_tokens=1, prompt_logprobs=0) for i, p in enumerate(PROMPTS)]
    )
    found = [outputs[str(i)][0].prompt_logprobs or [] for i in range(len(PROMPTS))]
    return [[token.logprob for token in one] for one in found], engine.info.weight_bytes


def off(ours: list[list[float]], theirs: list[list[float]]) -> float:
    return max(abs(a - b) for one, two in zip(ours, theirs, strict=True) for a, b in zip(one, two, strict=True))


@pytest.mark.skipif(library.reason() is not None, reason="the native kernels were not built here")
def test_weights_are_rounded_when_they_are_loaded() -> None:
    """int8 on XLA and int4 on the native kernels: as far from the original as their bits say, in less memory."""
    plain, size = replies()
    eight, small = replies(quantization="int8")
    four, _ = replies(quantization="int4-g32")
    native, smallest = replies(quantization="int4-g32", kernels="cpu")
    assert 1e-4 < off(eight, plain) < 0.1 < off(four, plain) < 2
    assert off(native, four) < 2e-3, "the native kernels multiply the same numbers"
    assert smallest < small < 0.7 * size


def test_what_is_quantized_already_is_refused(tmp_path: Path) -> None:
    write(tmp_path, FORMATS["awq-g128"])
    with pytest.raises(ConfigError, match=r"quantized already.*leave --quantization out"):
        tiny.engine(open_checkpoint(tmp_path), quantization="int8")
