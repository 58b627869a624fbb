"""What is sent and when is decided by the seed alone."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from slipstream.bench.options import ServeOptions, Span
from slipstream.bench.workload import FIRST_ID, WORDS, arrivals, plan, read_prompts
from slipstream.errors import ConfigError


def test_constant_arrivals() -> None:
    assert arrivals(4, 2.0, "constant", random.Random(0)) == [0.0, 0.5, 1.0, 1.5]
    assert arrivals(3, math.inf, "poisson", random.Random(0)) == [0.0, 0.0, 0.0]


def test_poisson_arrivals() -> None:
    times = arrivals(20_001, 5.0, "poisson", random.Random(1))
    assert times == arrivals(20_001, 5.0, "poisson", random.Random(1))
    assert times != arrivals(20_001, 5.0, "poisson", random.Random(2))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    # An exponential distribution's deviation is its mean; 20,000 draws know both to about 1 %.
    assert mean == pytest.approx(0.2, rel=0.03)
    assert deviation == pytest.approx(0.2, rel=0.03)


def test_equal_seeds_send_equal_loads() -> None:
    options = ServeOptions(requests=20, rate=3, prompt_tokens="5:9", output_tokens="2:4", seed=7)
    assert plan(options) == plan(options)
    other = plan(ServeOptions(requests=20, rate=3, prompt_tokens="5:9", output_tokens="2:4", seed=8))
    assert plan(options)[1] != other[1]


def test_a_rate_leaves_the_prompts_alone() -> None:
    slow, fast = (plan(ServeOptions(requests=9, rate=rate, prompt_tokens="3:8"))[1] for rate in (1.0, 9.0))
    assert [p.body for p in slow] == [p.body for p in fast]
    assert [p.at for p in slow] != [p.at for p in fast]


def test_lengths_and_ids() -> None:
    _, load = plan(ServeOptions(requests=300, prompt_tokens="5:9", output_tokens="2:4", vocab_size=150))
    assert {len(p.body["prompt"]) for p in load} == {5, 6, 7, 8, 9}
    assert {p.body["max_tokens"] for p in load} == {2, 3, 4}
    ids = {token for p in load for token in p.body["prompt"]}
    assert min(ids) == FIRST_ID and max(ids) == 149
    assert load[0].body["ignore_eos"] is True
    assert load[0].body["stream_options"] == {"include_usage": True}


def test_words_for_chat() -> None:
    warm, load = plan(ServeOptions(requests=3, warmup=1, endpoint="chat", prompt_tokens="6", ignore_eos=False))
    words = load[0].body["messages"][0]["content"].split()
    assert len(words) == 6 and set(words) <= set(WORDS)
    assert "ignore_eos" not in load[0].body
    assert len(warm) == 1 and warm[0].body["messages"] != load[0].body["messages"]


def test_prompts_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    entries: list[dict[str, Any]] = [{"prompt": "a"}, {"prompt": [1, 2], "max_tokens": 3}]
    path.write_text("\n".join(map(json.dumps, entries)) + "\n\n")
    _, load = plan(ServeOptions(requests=3, prompts=path, output_tokens="9"))
    assert [(p.body["prompt"], p.body["max_tokens"]) for p in load] == [("a", 9), ([1, 2], 3), ("a", 9)]
    path.write_text('{"prompt": "hi"}\n{"messages": [{"role": "user", "content": "yo"}]}\n')
    assert [body["messages"][0]["content"] for body in read_prompts(path, "chat")] == ["hi", "yo"]


@pytest.mark.parametrize(
    ("text", "endpoint", "said"),
    [
        ("", "chat", "has no lines"),
        ("{", "chat", ":1 is not JSON"),
        ("[]", "chat", "needs an object"),
        ('{"prompt": "a", "n": 2}', "chat", "nothing reads n"),
        ('{"prompt": [1]}', "chat", "token ids"),
        ('{"messages": []}', "completions", "--endpoint chat"),
        ('{"prompt": "a", "max_tokens": 0}', "chat", "at least 1"),
    ],
)
def test_a_prompts_file_that_cannot_work(tmp_path: Path, text: str, endpoint: str, said: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_prompts(path, endpoint)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prompts(tmp_path / "none", endpoint)


def test_spans() -> None:
    assert Span.parse("128", flag="--x") == Span(128, 128)
    assert Span.parse(" 2 : 5", flag="--x") == Span(2, 5)
    for text in ("", "a", "5:2", "0", "1:2:3", "-4"):
        with pytest.raises(ConfigError, match="--x"):
            Span.parse(text, flag="--x")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rate": 0}, "--rate"),
        ({"rate": math.nan}, "--rate"),
        ({"requests": 0}, "--requests"),
        ({"concurrency": 0}, "--concurrency"),
        ({"timeout": 0}, "--timeout"),
        ({"base_url": "localhost:8000"}, "--base-url"),
        ({"endpoint": "chat", "prompt_form": "ids"}, "--prompt-form"),
        ({"slo": ("ttft:fast",)}, "--slo"),
        ({"slo": ("speed:2",)}, "--slo"),
        ({"plot": Path("a.bmp")}, "--plot"),
        ({"output_tokens": "9:1"}, "--output-tokens"),
        ({"vocab_size": 100}, "--vocab-size"),
    ],
)
def test_settings_that_cannot_work(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ServeOptions(**wrong)


def test_readings_of_settings() -> None:
    assert ServeOptions(slo=("ttft:200", "tpot:50")).limits == {"ttft": 200.0, "tpot": 50.0}
    assert ServeOptions(slo=("ttft:200 e2e:1.5,itl:3",)).limits == {"ttft": 200.0, "e2e": 1.5, "itl": 3.0}
    for url in ("http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"):
        assert ServeOptions(base_url=url).api_url == "http://h:1/v1"
