"""Text completions through the real openai client."""

from __future__ import annotations

import pytest

from .conftest import Start
from .toys import BOS_ID, EOS_ID, ids


def test_text_prompt(start: Start) -> None:
    live = start(" there, and then some more")
    answer = live.openai().completions.create(model="toy", prompt="hello")
    assert answer.choices[0].text == " there, and then"  # 16 tokens by default
    assert answer.choices[0].finish_reason == "length"
    assert live.client.requests[0].prompt_token_ids == [BOS_ID, *ids("hello")]
    assert answer.usage.total_tokens == 6 + 16


def test_the_default_length_gives_way_to_the_context(start: Start) -> None:
    live = start("x" * 40)
    answer = live.openai().completions.create(model="toy", prompt=[65] * 505)
    assert answer.choices[0].text == "x" * 7


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [[BOS_ID, *ids("ab")]]),
        (["ab", "c"], [[BOS_ID, *ids("ab")], [BOS_ID, *ids("c")]]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_prompts_of_every_form(start: Start, prompt: object, expected: list[list[int]]) -> None:
    live = start("x")
    answer = live.openai().completions.create(model="toy", prompt=prompt, n=2)  # type: ignore[arg-type]
    assert [request.prompt_token_ids for request in live.client.requests] == [p for p in expected for _ in range(2)]
    assert [choice.index for choice in answer.choices] == list(range(2 * len(expected)))
    assert answer.usage.prompt_tokens == sum(len(p) for p in expected)
    assert answer.usage.completion_tokens == 4 * len(expected)


def test_without_special_tokens(start: Start) -> None:
    live = start("x")
    live.openai().completions.create(model="toy", prompt="ab", extra_body={"add_special_tokens": False})
    assert live.client.requests[0].prompt_token_ids == ids("ab")


def test_logprobs(start: Start) -> None:
    answer = start("aéb").openai().completions.create(model="toy", prompt="p", logprobs=2)
    found = answer.choices[0].logprobs
    tokens = [*ids("aéb"), EOS_ID]
    assert found.token_logprobs == [pytest.approx(-t / 100) for t in tokens]
    assert found.text_offset == [0, 1, 1, 2, 3]
    # Halves of characters look alike, and one name has one entry.
    assert [len(top) for top in found.top_logprobs] == [2, 1, 1, 2, 2]
    assert found.tokens[0] == "a"
    assert found.tokens[-1] == "<|end|>"


@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_logprobs(start: Start, stream: bool) -> None:
    live = start("xy")
    options = {"model": "toy", "prompt": "ab", "echo": True, "logprobs": 1}
    if stream:
        choices = [chunk.choices[0] for chunk in live.openai().completions.create(stream=True, **options)]
        assert choices[0].text.startswith("ab")
    else:
        choices = [live.openai().completions.create(**options).choices[0]]
    assert "".join(choice.text for choice in choices) == "abxy"
    joined = {name: [v for c in choices for v in getattr(c.logprobs, name)] for name in ("tokens", "text_offset")}
    assert joined["tokens"] == ["<|begin|>", "a", "b", "x", "y", "<|end|>"]
    assert joined["text_offset"] == [0, 0, 1, 2, 3, 4]
    logprobs = [v for c in choices for v in c.logprobs.token_logprobs]
    assert logprobs[0] is None
    assert logprobs[1:3] == [pytest.approx(-t / 100) for t in ids("ab")]


def test_echo_without_new_tokens_scores_the_prompt(start: Start) -> None:
    answer = start("xy").openai().completions.create(model="toy", prompt="ab", echo=True, logprobs=0, max_tokens=0)
    choice = answer.choices[0]
    assert choice.text == "ab"
    assert choice.logprobs.tokens == ["<|begin|>", "a", "b"]
    assert choice.logprobs.top_logprobs[1] == {"a": pytest.approx(-ids("a")[0] / 100)}
    assert answer.usage.completion_tokens == 0


def test_echo_of_token_ids(start: Start) -> None:
    choice = start("xy").openai().completions.create(model="toy", prompt=ids("ab"), echo=True).choices[0]
    assert choice.text == "abxy"


def test_prompt_logprobs_in_each_choice(start: Start) -> None:
    live = start("x")
    answer = live.post("/v1/completions", json={"prompt": ["ab", "c"], "prompt_logprobs": 0}).json()
    assert [len(choice["prompt_logprobs"]) for choice in answer["choices"]] == [3, 2]
    a = ids("a")[0]
    assert answer["choices"][0]["prompt_logprobs"][1] == {
        str(a): {"logprob": -a / 100, "rank": 1, "decoded_token": "a"}
    }


def test_bad_words_and_biases_reach_the_engine(start: Start) -> None:
    live = start("x")
    body = {"prompt": "p", "bad_words": ["no"], "logit_bias": {"5": -100}, "top_k": -1, "min_p": 0.1, "seed": 3}
    live.post("/v1/completions", json=body).raise_for_status()
    sampling = live.client.requests[0].sampling
    assert tuple(ids("no")) in sampling.bad_token_ids
    assert sampling.logit_bias == ((5, -100.0),)
    assert (sampling.top_k, sampling.min_p, sampling.seed) == (0, 0.1, 3)


def test_cached_tokens_count_once_a_prompt(start: Start) -> None:
    answer = start("x", cached=2).openai().completions.create(model="toy", prompt=["aa", "bb"], n=3)
    assert answer.usage.prompt_tokens_details.cached_tokens == 4


def test_best_of_may_be_n(start: Start) -> None:
    assert len(start("x").openai().completions.create(model="toy", prompt="p", n=2, best_of=2).choices) == 2


def test_without_a_tokenizer_ids_go_in_and_come_out(start: Start) -> None:
    live = start(lambda _: [7, 8, 9], tokenizer=None)
    body = {"prompt": [1, 2], "logprobs": 1, "stop_token_ids": [9]}
    choice = live.post("/v1/completions", json=body).json()["choices"][0]
    assert choice["text"] == ""
    assert choice["token_ids"] == [7, 8, 9]
    assert choice["prompt_token_ids"] == [1, 2]
    assert choice["logprobs"]["tokens"] == ["token_id:7", "token_id:8", "token_id:9"]
    streamed = live.post("/v1/completions", json={**body, "stream": True}).text
    assert [f'"token_ids":[{t}]' in streamed for t in (7, 8, 9)] == [True, True, True]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "text"}, "prompt"),
        ("/v1/completions", {"prompt": [1], "stop": ["x"]}, "stop"),
        ("/v1/completions", {"prompt": [1], "bad_words": ["x"]}, "bad_words"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, "messages"),
        ("/tokenize", {"prompt": "x"}, "prompt"),
        ("/detokenize", {"tokens": [1]}, "tokens"),
    ],
)
def test_without_a_tokenizer_text_is_refused(start: Start, path: str, body: dict[str, object], param: str) -> None:
    reply = start("", tokenizer=None).post(path, json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
    assert "tokenizer" in reply.json()["error"]["message"]
