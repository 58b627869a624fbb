"""The built-in models, with their real weights: against transformers, and the native kernels against float32.

transformers reads the tensors that the gguf package dequantizes; nothing of ours is in its numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slipstream.bench.accuracy import Row, summarize
from slipstream.bench.divergence import Mode, measure
from slipstream.bench.texts import passages
from slipstream.checkpoint import open_checkpoint, resolve
from slipstream.kernels.ragged import Kernels
from slipstream.text import Tokenizer, load_tokenizer
from tests.models.harness import Model, difference
from tests.parity import reference

NEW = 64
TOLERANCE: dict[Kernels, float] = {"reference": 1e-4, "cpu": 1e-3}
"""Of logits, over the largest. The native kernels round activations to 16 bits."""

LONG = 576  # tokens: more than Gemma's window of 512

# What `--cpu-precision` promises, on 4,000 tokens of English and chat.
LEAST_TOKENS = 4000
EXACT_KL, EXACT_TOP1 = 1e-4, 0.998
FAST_PERPLEXITY = 0.5  # percent more


@dataclass(frozen=True)
class Real:
    """A built-in model: its file, and the same in transformers."""

    path: Path
    theirs: Any

    @property
    def tokenizer(self) -> Tokenizer:
        spec = open_checkpoint(self.path).tokenizer
        assert spec is not None
        return load_tokenizer(spec)


@pytest.fixture(scope="module", params=reference.GGUF_CONFIGS)
def real(request: pytest.FixtureRequest) -> Iterator[Real]:
    path = resolve(request.param)
    yield Real(path, reference.open_gguf(request.param, path))


@pytest.mark.parametrize("kernels", TOLERANCE)
def test_logits_and_greedy_tokens(real: Real, kernels: Kernels) -> None:
    """Logits of a whole prompt, then 64 greedy tokens of both, decoded one by one."""
    ours = Model.open(real.path, kernels)
    prompt = real.tokenizer.encode("Paris is the capital of")
    session = ours.session([len(prompt) + NEW], len(prompt))
    assert difference(session.step(prompt)[0], reference.Session(real.theirs).step(prompt)) < TOLERANCE[kernels]
    session = ours.session([len(prompt) + NEW], len(prompt))
    assert session.greedy(prompt, NEW) == reference.Session(real.theirs).greedy(prompt, NEW)


def test_a_long_text(real: Real) -> None:
    """KL(transformers || ours) and the likeliest tokens of English prose, for both kinds of kernels."""
    text = passages(real.tokenizer)[0].ids[:LONG]
    theirs = reference.Session(real.theirs).step(text)
    for kernels, most in {"reference": 1e-9, "cpu": EXACT_KL}.items():
        [ours] = Model.open(real.path, kernels).session([LONG], LONG).step(text)  # type: ignore[arg-type]
        kl, agrees = compared(theirs, ours)
        assert kl < most, kernels
        assert agrees >= EXACT_TOP1, kernels


def compared(p: np.ndarray, q: np.ndarray) -> tuple[float, float]:
    """Mean KL(p || q) of logits [t, v], in float64, and how often the largest is the same."""

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64)
        x -= x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    kl = [(np.exp(a) * (a - b)).sum(-1) for a, b in ((log_softmax(p[i]), log_softmax(q[i])) for i in range(len(p)))]
    return float(np.mean(kl)), float((p.argmax(-1) == q.argmax(-1)).mean())


def test_both_precisions_keep_their_limits(real: Real, capsys: pytest.CaptureFixture[str]) -> None:
    """The measurement is `slipstream bench accuracy`'s; what it calls float32 is compared with transformers above."""
    texts = passages(real.tokenizer)
    modes = [Mode("exact"), Mode("fast")]
    found = measure(open_checkpoint(real.path), [text.ids for text in texts], modes)
    exact, fast = (
        summarize(mode.precision, mode.kv_dtype, texts, numbers)[0] for mode, numbers in zip(modes, found, strict=True)
    )
    with capsys.disabled():
        print(f"\n{real.path.name}", *map(said, (exact, fast)), sep="\n  ")
    assert exact.tokens == fast.tokens >= LEAST_TOKENS
    assert exact.kl_mean <= EXACT_KL
    assert exact.top1 >= EXACT_TOP1
    assert fast.change_percent <= FAST_PERPLEXITY


def said(row: Row) -> str:
    perplexity = f"perplexity {row.perplexity:.3f}, float32 {row.reference_perplexity:.3f}"
    change = f"{row.change_percent:+.3f}% ± {row.change_error:.3f}"
    return (
        f"{row.precision}: KL {row.kl_mean:.2g} (p99.9 {row.kl_p999:.2g}), top-1 {row.top1:.2%}, {perplexity}, {change}"
    )
