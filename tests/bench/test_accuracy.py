"""The accuracy measurement against the same numbers taken another way; its texts, table and file."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from slipstream.bench import accuracy
from slipstream.bench.accuracy import summarize
from slipstream.bench.divergence import Divergence, Mode, measure
from slipstream.bench.options import AccuracyOptions
from slipstream.bench.texts import Passage, passages
from slipstream.checkpoint import open_checkpoint, resolve
from slipstream.errors import ConfigError, NoTokenizer
from slipstream.kernels.native import library
from slipstream.text import load_tokenizer
from tests.engine import quantized, tiny
from tests.models.harness import Model

needs_native = pytest.mark.skipif(library.reason() is not None, reason="the native kernels were not built here")

CONFIG = tiny.CONFIG | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
RNG = np.random.default_rng(5)
TEXTS = [RNG.integers(0, 211, size=n).tolist() for n in (40, 3, 71, 2)]


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))


def predictions(model: Model) -> np.ndarray:
    """Log probabilities [n, v] of all positions that predict something, from one step."""
    lengths = [len(text) for text in TEXTS]
    found = model.session(lengths, sum(lengths)).step(*TEXTS)
    return log_softmax(np.concatenate([logits[:-1] for logits in found]))


@needs_native
def test_numbers_are_those_of_whole_forwards() -> None:
    """Taken in float64 from one step; by steps that cut texts up, hold several, and end in padding."""
    stored = quantized.checkpoint(CONFIG, jitter=0.3)
    exact, fast = measure(stored, TEXTS, [Mode("exact", "float32"), Mode("fast", "float32")], step_tokens=32)
    p, q = (predictions(Model.read(CONFIG, stored.source, *way)) for way in (("reference", "exact"), ("cpu", "fast")))
    following = np.concatenate([text[1:] for text in TEXTS])
    each = np.arange(len(following))
    assert len(exact.kl) == len(fast.kl) == len(following)
    for found in (exact, fast):
        np.testing.assert_allclose(found.reference_loss, -p[each, following], atol=2e-5)
    np.testing.assert_allclose(fast.loss, -q[each, following], atol=2e-5)
    np.testing.assert_allclose(fast.kl, (np.exp(p) * (p - q)).sum(-1), rtol=0.01, atol=1e-9)
    np.testing.assert_array_equal(fast.agrees, p.argmax(-1) == q.argmax(-1))
    assert exact.kl.min() >= 0
    assert exact.kl.max() < 1e-6, "far under exact's limit of 1e-4"
    assert fast.kl.mean() > 1e-6, "8 bits are seen"


@pytest.mark.parametrize(("name", "chat"), [("smollm2-135m", 1400), ("gemma3-270m", 1300)])
def test_texts_are_long_enough(name: str, chat: int) -> None:
    """The limits of both precisions are stated for 4,000 tokens of English and chat."""
    spec = open_checkpoint(resolve(name)).tokenizer
    assert spec is not None
    tokenizer = load_tokenizer(spec)
    texts = passages(tokenizer)
    assert sum(len(text.ids) - 1 for text in texts) >= 4000
    assert [text.kind for text in texts] == ["prose"] * 3 + ["chat"]
    assert len(texts[-1].ids) > chat
    assert (
        "<|im_start|>assistant" in tokenizer.decode(texts[-1].ids, skip_special=False)
    ) == tokenizer.has_chat_template
    for text in texts:
        assert tokenizer.decode(text.ids).count("\ufffd") == 0


PASSAGES = [Passage("prose", [1, 2, 3]), Passage("chat", [4, 5])]
NUMBERS = Divergence(
    np.array([0.0, 0.25, 0.5]), np.array([True, True, False]), np.array([1.0, 2.0, 3.5]), np.array([1.0, 2.0, 3.0])
)


def test_rows_of_all_and_of_each_kind() -> None:
    every, prose, chat = summarize("fast", "bfloat16", PASSAGES, NUMBERS)
    assert [(row.text, row.tokens) for row in (every, prose, chat)] == [("all", 3), ("prose", 2), ("chat", 1)]
    assert (every.precision, every.kv_dtype) == ("fast", "bfloat16")
    assert every.kl_mean == pytest.approx(0.25)
    assert every.kl_p999 == pytest.approx(0.4995)
    assert (every.kl_max, every.top1) == (0.5, pytest.approx(2 / 3))
    assert every.perplexity == pytest.approx(math.exp(6.5 / 3))
    assert every.reference_perplexity == pytest.approx(math.exp(2))
    assert every.change_percent == pytest.approx(100 * (math.exp(0.5 / 3) - 1))
    spread = np.std([0, 0, 0.5]) / math.sqrt(3)
    assert every.change_error == pytest.approx(100 * math.exp(0.5 / 3) * spread)
    assert prose.change_percent == prose.change_error == 0
    assert [row.text for row in summarize("exact", "auto", PASSAGES[:1], NUMBERS[:2])] == ["all"]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Mode]]:
    """In place of `measure`: equal numbers for every position. What it was asked for is listed."""
    asked: list[tuple[int, Mode]] = []

    def fake(_: object, texts: list[list[int]], modes: list[Mode], **__: object) -> list[Divergence]:
        count = sum(len(text) - 1 for text in texts)
        asked.extend((count, mode) for mode in modes)
        one = Divergence(np.full(count, 0.125), np.full(count, True), np.full(count, 2.0), np.full(count, 2.0))
        return [one for _ in modes]

    monkeypatch.setattr(accuracy, "measure", fake)
    monkeypatch.setattr(accuracy, "use_compile_cache", lambda _: None)
    return asked


def test_a_pipe_gets_lines_and_the_file_everything(tmp_path: Path, measured: list[tuple[int, Mode]]) -> None:
    console = Console(file=io.StringIO(), width=40)
    options = AccuracyOptions(kv_dtype=("float32", "bfloat16"), json=tmp_path / "out.json")
    rows = accuracy.run(open_checkpoint(resolve("smollm2-135m")), options, console=console)
    assert [mode for _, mode in measured] == [
        Mode(precision, kv) for precision in ("exact", "fast") for kv in ("float32", "bfloat16")
    ]
    head, *lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert head.split("\t") == list(accuracy.COLUMNS)
    assert len(lines) == len(rows) == 12
    assert lines[0].split("\t") == [
        "exact", "float32", "all", f"{measured[0][0]:,}", "0.12", "0.12", "100.00%", "7.389", "7.389",
        "+0.000% ± 0.000",
    ]  # fmt: skip
    report = json.loads(options.json.read_text())  # type: ignore[union-attr]
    assert report["schema"] == "slipstream.bench.accuracy/1"
    assert report["model"].endswith(".gguf")
    assert report["rows"][0]["kl_mean"] == 0.125
    assert len(report["rows"]) == 12


def test_a_terminal_gets_a_table(measured: list[tuple[int, Mode]]) -> None:
    console = Console(file=io.StringIO(), width=140, force_terminal=True, color_system=None)
    accuracy.run(open_checkpoint(resolve("smollm2-135m")), AccuracyOptions(precision=("fast",)), console=console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "precision" in text
    assert "\t" not in text
    assert "100.00%" in text


def test_a_text_of_ones_own(tmp_path: Path, measured: list[tuple[int, Mode]]) -> None:
    path = tmp_path / "own.txt"
    path.write_text("word " * 1500)
    options = AccuracyOptions(precision=("exact",), text=path)
    [row] = accuracy.run(open_checkpoint(resolve("smollm2-135m")), options, console=Console(file=io.StringIO()))
    assert row.text == "all"
    assert 1400 < row.tokens < 1600


def test_what_cannot_be_measured_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smol = open_checkpoint(resolve("smollm2-135m"))
    quiet = Console(file=io.StringIO())
    with pytest.raises(NoTokenizer, match="tiny has no tokenizer"):
        accuracy.run(quantized.checkpoint(CONFIG), AccuracyOptions(), console=quiet)
    with pytest.raises(ConfigError, match="make it first"):
        accuracy.run(smol, AccuracyOptions(json=tmp_path / "no" / "a.json"), console=quiet)
    with pytest.raises(ConfigError, match="cannot be read"):
        accuracy.run(smol, AccuracyOptions(text=tmp_path / "none.txt"), console=quiet)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ConfigError, match="nothing to predict"):
        accuracy.run(smol, AccuracyOptions(text=tmp_path / "empty.txt"), console=quiet)
    monkeypatch.setattr(library, "reason", lambda: "the native CPU kernels were not built: install g++")
    with pytest.raises(ConfigError, match="install g\\+\\+"):
        measure(quantized.checkpoint(CONFIG), TEXTS, [Mode("exact")])
