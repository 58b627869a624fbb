"""`LLM.embed` and `LLM.score`, and `slipstream embed`, on a tiny BERT."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slipstream import LLM
from slipstream.cli.main import run
from slipstream.errors import PromptTooLong, RequestError
from tests.integration.test_embeddings import write_model
from tests.models.encoders import MINILM, Encoded, renormalised

SETTINGS: dict[str, Any] = {"max_seqs": 4, "max_batched_tokens": 32, "max_model_len": 16, "weight_cache": ""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {**MINILM, "num_hidden_layers": 1, "matryoshka_dimensions": [8, 24]}
    return write_model(tmp_path_factory.mktemp("llm") / "model", config)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    yield LLM(folder, compile_cache=str(folder / "steps"), **SETTINGS)


def embedded(llm: LLM, *prompts: Any, **options: Any) -> np.ndarray:
    return np.asarray([one.outputs.embedding for one in llm.embed(list(prompts), use_tqdm=False, **options)])


def test_vectors_of_texts_and_of_ids(llm: LLM) -> None:
    """The mean of the states, of length 1, as the files say."""
    assert llm.tokenizer is not None
    texts = ["a b c", "hello", "x y"]
    ids = [llm.tokenizer.encode(text) for text in texts]
    found = embedded(llm, *texts)
    np.testing.assert_allclose(embedded(llm, *ids), found, atol=1e-6)
    model = Encoded.of(llm.checkpoint)
    for text, vector in zip(ids, found, strict=True):
        np.testing.assert_allclose(vector, renormalised(model.states([text], 16).mean(0)), atol=1e-5)
    [one] = llm.embed("a b c", use_tqdm=False)
    assert (one.prompt_token_ids, one.outputs.hidden_size, one.finished) == (ids[0], 24, True)


def test_options(llm: LLM) -> None:
    whole = embedded(llm, "a b c", normalize=False)[0]
    np.testing.assert_allclose(embedded(llm, "a b c", dimensions=8)[0], renormalised(whole[:8]), atol=1e-6)
    long = " ".join("abcdefghijklmnopqrs")
    np.testing.assert_allclose(
        embedded(llm, long, truncate_prompt_tokens=-1), embedded(llm, long[: 2 * 14 - 1]), atol=1e-6
    )
    with pytest.raises(PromptTooLong, match="has 21 tokens, and the model takes at most 16"):
        embedded(llm, long)
    with pytest.raises(RequestError, match="dimensions must be one of 8, 24"):
        embedded(llm, "a", dimensions=9)
    with pytest.raises(RequestError, match="token id 300 is outside"):
        embedded(llm, "a", [300])
    assert not llm.engine.has_work


def test_scores_are_cosines(llm: LLM) -> None:
    vectors = embedded(llm, "a b", "c", "x y z")
    scores = [one.outputs.score for one in llm.score("a b", ["c", "x y z", "a b"], use_tqdm=False)]
    np.testing.assert_allclose(scores, [*(vectors[1:] @ vectors[0]), 1.0], atol=1e-6)


def test_it_generates_nothing(llm: LLM) -> None:
    with pytest.raises(RequestError, match="generates nothing: use embed or score"):
        llm.generate("a")


def test_on_the_command_line(llm: LLM, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    code = run(["embed", str(folder), "a b c", "hello", "--compile-cache", str(folder / "steps"), *flags])
    assert code == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_allclose(lines, embedded(llm, "a b c", "hello"), atol=1e-6)
    assert run(["embed", str(folder), "a", "--dimensions", "9", "--compile-cache", str(folder / "steps"), *flags]) == 1
