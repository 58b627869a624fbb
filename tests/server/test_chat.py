"""Chat through the real openai client."""

from __future__ import annotations

import openai
import pytest

from .conftest import Start
from .toys import EOS_ID, ids

ASK = [{"role": "user", "content": "hi"}]


def test_whole_answer(start: Start) -> None:
    live = start("Hello, world")
    answer = live.openai().chat.completions.create(model="toy", messages=ASK)
    choice = answer.choices[0]
    assert choice.message.content == "Hello, world"
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert answer.model == "toy"
    assert answer.id.startswith("chatcmpl-")
    prompt = ids("[user:hi][assistant:")
    assert live.client.requests[0].prompt_token_ids == prompt
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(ids("Hello, world")) + 1  # the end of text counts
    assert live.client.requests[0].sampling.max_tokens == 512 - len(prompt)
    assert live.client.ends == {answer.id + "-0": "finished"}


def test_stream_role_first_finish_last_usage_after(start: Start) -> None:
    live = start("Hé!", cached=3)
    chunks = list(
        live.openai().chat.completions.create(
            model="toy", messages=ASK, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "Hé!"
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 5
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 3
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


def test_stream_without_usage_says_nothing_of_it(start: Start) -> None:
    live = start("ab")
    raw = live.post("/v1/chat/completions", json={"messages": ASK, "stream": True})
    assert raw.headers["content-type"].startswith("text/event-stream")
    events = [line for line in raw.text.split("\n\n") if line]
    assert all(event.startswith("data: ") for event in events)
    assert events[-1] == "data: [DONE]"
    assert '"usage"' not in raw.text


def test_continuous_usage_counts_up(start: Start) -> None:
    live = start("abc", delay=0.01)
    chunks = list(
        live.openai().chat.completions.create(
            model="toy",
            messages=ASK,
            stream=True,
            stream_options={"include_usage": True, "continuous_usage_stats": True},  # type: ignore[typeddict-unknown-key]
        )
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 4


def test_n_choices_interleave_with_their_index(start: Start) -> None:
    live = start(lambda request: ids("abcdef" if request.id.endswith("-0") else "uvwxyz"), delay=0.01)
    texts = {0: "", 1: ""}
    order = []
    for chunk in live.openai().chat.completions.create(model="toy", messages=ASK, n=2, stream=True, seed=7):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        order.append(choice.index)
    assert texts == {0: "abcdef", 1: "uvwxyz"}
    assert order != sorted(order)
    assert [request.sampling.seed for request in live.client.requests] == [7, 8]


def test_logprobs_in_chat_shape(start: Start) -> None:
    live = start("é")
    answer = live.openai().chat.completions.create(model="toy", messages=ASK, logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    first, second, end = content
    expected = ids("é")
    assert bytes(first.bytes + second.bytes).decode() == "é"
    assert first.logprob == pytest.approx(-expected[0] / 100)
    assert [len(entry.top_logprobs) for entry in content] == [2, 2, 2]
    assert first.top_logprobs[1].logprob == pytest.approx(-expected[0] / 100 - 1)
    assert end.token == "<|end|>"


def test_logprobs_without_top(start: Start) -> None:
    answer = start("a").openai().chat.completions.create(model="toy", messages=ASK, logprobs=True)
    assert answer.choices[0].logprobs.content[0].top_logprobs == []


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_stay_with_the_text_that_a_stop_string_cuts(start: Start, stream: bool) -> None:
    live = start("one two STOP three", burst=3)
    options = {"model": "toy", "messages": ASK, "stop": ["STOP"], "logprobs": True}
    if stream:
        chunks = [c.choices[0] for c in live.openai().chat.completions.create(stream=True, **options)]
        content = [entry for c in chunks if c.logprobs for entry in c.logprobs.content]
        text = "".join(c.delta.content or "" for c in chunks)
        so_far, tokens = "", ""
        for c in chunks:
            so_far += c.delta.content or ""
            tokens += "".join(e.token for e in c.logprobs.content) if c.logprobs else ""
            assert tokens == so_far  # each token is one character here: none is early or late
        reason = chunks[-1].finish_reason
    else:
        choice = live.openai().chat.completions.create(**options).choices[0]
        content, text, reason = choice.logprobs.content, choice.message.content, choice.finish_reason
    assert text == "one two "
    assert "".join(entry.token for entry in content) == text
    assert reason == "stop"
    assert list(live.client.ends.values()) == ["closed"]  # the engine was told to stop


def test_stop_string_is_named_and_can_be_kept(start: Start) -> None:
    live = start("one.two.three")
    body = {"messages": ASK, "stop": "two", "include_stop_str_in_output": True}
    choice = live.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["message"]["content"] == "one.two"
    assert choice["stop_reason"] == "two"


def test_stop_token_is_hidden_and_named(start: Start) -> None:
    live = start("ab!cd")
    stop = ids("!")[0]
    choice = live.post("/v1/chat/completions", json={"messages": ASK, "stop_token_ids": [stop]}).json()["choices"][0]
    assert (choice["message"]["content"], choice["stop_reason"], choice["finish_reason"]) == ("ab", stop, "stop")
    body = {"messages": ASK, "stop_token_ids": [stop], "include_stop_str_in_output": True}
    assert live.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"] == "ab!"


def test_end_of_text_is_not_named(start: Start) -> None:
    choice = start("ab").post("/v1/chat/completions", json={"messages": ASK}).json()["choices"][0]
    assert choice["stop_reason"] is None


def test_max_completion_tokens(start: Start) -> None:
    live = start("abcdef")
    choice = live.openai().chat.completions.create(model="toy", messages=ASK, max_completion_tokens=3).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("abc", "length")


def test_token_ids_on_request(start: Start) -> None:
    live = start("ab")
    body = {"messages": ASK, "return_token_ids": True}
    answer = live.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["token_ids"] == [*ids("ab"), EOS_ID]
    assert answer["prompt_token_ids"] == ids("[user:hi][assistant:")
    raw = live.post("/v1/chat/completions", json=body | {"stream": True}).text
    assert raw.count('"prompt_token_ids"') == 1


def test_prompt_logprobs(start: Start) -> None:
    live = start("ab")
    answer = live.post("/v1/chat/completions", json={"messages": ASK, "prompt_logprobs": 1}).json()
    prompt = ids("[user:hi][assistant:")
    assert len(answer["prompt_logprobs"]) == len(prompt)
    assert answer["prompt_logprobs"][0] is None
    assert answer["prompt_logprobs"][1] == {
        str(prompt[1]): {"logprob": -prompt[1] / 100, "rank": 1, "decoded_token": "u"}
    }


def test_template_variables_tools_and_parts(start: Start) -> None:
    live = start("x")
    live.post(
        "/v1/chat/completions",
        json={
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "be kind"}]},
                {"role": "user", "content": "hi"},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
            "tool_choice": "auto",
            "add_generation_prompt": False,
            "chat_template_kwargs": {"mood": "calm"},
        },
    ).raise_for_status()
    assert live.client.requests[0].prompt_token_ids == ids("[system:be kind][user:hi]{tools:1}{mood:calm}")


def test_the_template_s_own_refusal_is_the_client_s_to_read(start: Start) -> None:
    reply = start().post("/v1/chat/completions", json={"messages": [{"role": "function", "content": "x"}]})
    assert reply.status_code == 400
    assert "no functions here" in reply.json()["error"]["message"]


def test_messages_of_an_answer_can_be_sent_back(start: Start) -> None:
    client = start("fine").openai()
    answer = client.chat.completions.create(model="toy", messages=ASK)
    message = answer.choices[0].message.model_dump()
    again = client.chat.completions.create(model="toy", messages=[*ASK, message, *ASK])
    assert again.choices[0].message.content == "fine"


def test_engine_failure_before_the_first_token_has_a_status(start: Start) -> None:
    live = start("abc", fail_at=0)
    with pytest.raises(openai.InternalServerError, match="the engine is broken"):
        live.openai().chat.completions.create(model="toy", messages=ASK, stream=True)


@pytest.mark.parametrize("error", [None, RuntimeError("a secret")])
def test_engine_failure_in_a_stream_is_an_event(start: Start, error: Exception | None) -> None:
    live = start("abcdef", fail_at=3, error=error)
    text = ""
    with pytest.raises(openai.APIError) as caught:
        for chunk in live.openai().chat.completions.create(model="toy", messages=ASK, stream=True):
            text += chunk.choices[0].delta.content or ""
    assert text == "abc"
    assert "secret" not in str(caught.value)
    assert caught.value.body["type"] == "server_error"


def test_a_reply_may_use_ids_past_the_tokenizer_s_vocabulary(start: Start) -> None:
    live = start(lambda _: [*ids("a"), 299, *ids("b")])
    body = {"messages": ASK, "logprobs": True}
    choice = live.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["message"]["content"] == "ab"
    assert [entry["token"] for entry in choice["logprobs"]["content"]][1] == "token_id:299"


def test_generation_defaults_lie_under_the_request(start: Start) -> None:
    from slipstream.spec.source import GenerationDefaults

    live = start("x", generation=GenerationDefaults((EOS_ID,), {"temperature": 0.2, "top_k": 5.0, "nonsense": 3}))
    client = live.openai()
    client.chat.completions.create(model="toy", messages=ASK)
    client.chat.completions.create(model="toy", messages=ASK, temperature=0)
    first, second = (request.sampling for request in live.client.requests)
    assert (first.temperature, first.top_k) == (0.2, 5)
    assert (second.temperature, second.top_k) == (0.0, 5)
    assert first.seed != second.seed
    assert first.stop_token_ids == (EOS_ID,)
