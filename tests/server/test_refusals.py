"""Bad requests of every sort get a 4xx in OpenAI's shape that names the field; none gets a 500."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slipstream.api.openai import NEUTRAL, ChatRequest, CompletionRequest

from .conftest import Live, Start
from .toys import toy_tokenizer

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}
P = {"prompt": "p"}

# path, body, param, code
BAD_BODIES: list[tuple[str, Any, str | None, str | None]] = [
    (CHAT, b"", None, "invalid_json"),
    (CHAT, b"{", None, "invalid_json"),
    (CHAT, b"\xff\xfe", None, "invalid_json"),
    (CHAT, b'{"messages": NaN}', None, "invalid_json"),
    (CHAT, b'{"messages": [{"role": "user", "content": "\\ud800"}]}', None, "invalid_json"),
    (CHAT, b"[" * 100_000, None, "invalid_json"),
    (CHAT, b'{"a":' * 5_000 + b"1" + b"}" * 5_000, None, "invalid_json"),
    (CHAT, [], None, "invalid_type"),
    (CHAT, "text", None, "invalid_type"),
    (CHAT, None, None, "invalid_type"),
    (CHAT, {}, "messages", "missing_field"),
    (CHAT, {"messages": None}, "messages", "invalid_type"),
    (CHAT, {"messages": []}, "messages", "empty_prompt"),
    (CHAT, {"messages": ["hi"]}, "messages[0]", "invalid_type"),
    (CHAT, {"messages": [{"content": "hi"}]}, "messages[0].role", "missing_field"),
    (CHAT, {"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role", "invalid_type"),
    (CHAT, {"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "invalid_type"),
    (CHAT, {"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood", "unknown_field"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].type",
        "unsupported_field",
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
        "messages[0].content[0].text",
        "invalid_type",
    ),
    (CHAT, HI | {"temperature": "hot"}, "temperature", "invalid_type"),
    (CHAT, HI | {"temperature": True}, "temperature", "invalid_type"),
    (CHAT, HI | {"temperature": -1}, "temperature", None),
    (CHAT, HI | {"temperature": 1e300}, "temperature", None),
    (CHAT, HI | {"top_p": 0}, "top_p", None),
    (CHAT, HI | {"top_k": 1.5}, "top_k", "invalid_type"),
    (CHAT, HI | {"n": 0}, "n", None),
    (CHAT, HI | {"n": -3}, "n", None),
    (CHAT, HI | {"n": 10**9}, "n", "too_many_choices"),
    (CHAT, HI | {"seed": 2**70}, "seed", "invalid_type"),
    (CHAT, HI | {"max_tokens": 0}, "max_tokens", None),
    (CHAT, HI | {"max_completion_tokens": 0}, "max_completion_tokens", None),
    (CHAT, HI | {"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens", "invalid_combination"),
    (CHAT, HI | {"max_tokens": 4, "min_tokens": 5}, "min_tokens", None),
    (CHAT, HI | {"max_tokens": 10**6}, "max_tokens", "context_length_exceeded"),
    (CHAT, HI | {"stop": [""]}, "stop", None),
    (CHAT, HI | {"stop": ["x"] * 17}, "stop", None),
    (CHAT, HI | {"stop": [1]}, "stop[0]", "invalid_type"),
    (CHAT, HI | {"logit_bias": {"x": 1}}, "logit_bias", "invalid_type"),
    (CHAT, HI | {"logit_bias": {"1": 101}}, "logit_bias", None),
    (CHAT, HI | {"logit_bias": {"99999": 1}}, "logit_bias", None),
    (CHAT, HI | {"stop_token_ids": [-1]}, "stop_token_ids", None),
    (CHAT, HI | {"bad_words": [""]}, "bad_words", None),
    (CHAT, HI | {"logprobs": 3}, "logprobs", "invalid_type"),
    (CHAT, HI | {"top_logprobs": 3}, "top_logprobs", "invalid_combination"),
    (CHAT, HI | {"logprobs": True, "top_logprobs": 21}, "top_logprobs", None),
    (CHAT, HI | {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "invalid_combination"),
    (CHAT, HI | {"stream_options": {"include_usage": True}}, "stream_options", "invalid_combination"),
    (CHAT, HI | {"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_field"),
    (CHAT, HI | {"priority": 1}, "priority", "unsupported_field"),
    (CHAT, HI | {"tool_choice": "required"}, "tool_choice", "unsupported_field"),
    (CHAT, HI | {"tools": [1]}, "tools[0]", "invalid_type"),
    (CHAT, HI | {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages", "reserved_variable"),
    (CHAT, HI | {"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs.self", "reserved_variable"),
    (CHAT, HI | {"response_format": {"type": "json_object"}}, "response_format", "unsupported_field"),
    (CHAT, HI | {"store": True}, "store", "unsupported_field"),
    (CHAT, HI | {"temprature": 1}, "temprature", "unknown_field"),
    (CHAT, HI | {"suffix": "x"}, "suffix", "unknown_field"),
    (CHAT, HI | {"model": 5}, "model", "invalid_type"),
    (TEXT, {}, "prompt", "missing_field"),
    (TEXT, {"prompt": None}, "prompt", "invalid_type"),
    (TEXT, {"prompt": 5}, "prompt", "invalid_type"),
    (TEXT, {"prompt": []}, "prompt", "empty_prompt"),
    (TEXT, {"prompt": [[]]}, "prompt", "empty_prompt"),
    (TEXT, {"prompt": "", "add_special_tokens": False}, "prompt", "empty_prompt"),
    (TEXT, {"prompt": ["a", ""], "add_special_tokens": False}, "prompt[1]", "empty_prompt"),
    (TEXT, {"prompt": [1, "a"]}, "prompt", "invalid_type"),
    (TEXT, {"prompt": [1, True]}, "prompt", "invalid_type"),
    (TEXT, {"prompt": [[1], [2.5]]}, "prompt[1][0]", "invalid_type"),
    (TEXT, {"prompt": [1, 300]}, "prompt[1]", "invalid_token_id"),
    (TEXT, {"prompt": [[1], [-1]]}, "prompt[1][0]", "invalid_token_id"),
    (TEXT, {"prompt": [1] * 512}, "prompt", "context_length_exceeded"),
    (TEXT, P | {"suffix": "end"}, "suffix", "unsupported_field"),
    (TEXT, P | {"best_of": 3}, "best_of", "unsupported_field"),
    (TEXT, P | {"logprobs": 21}, "logprobs", None),
    (TEXT, P | {"max_tokens": 0}, "max_tokens", None),
    (TEXT, P | {"echo": 1}, "echo", "invalid_type"),
    (TEXT, P | {"messages": []}, "messages", "unknown_field"),
]


def problem(reply: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def test_bad_bodies(start: Start) -> None:
    live = start()
    wrong = []
    for path, body, param, code in BAD_BODIES:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        reply = live.post(path, content=data)
        error = problem(reply)
        found = (reply.status_code, error["type"], error["param"], error["code"])
        if found != (400, "invalid_request_error", param, code):
            wrong.append((data[:120], found, error["message"]))
    assert wrong == []
    assert live.client.requests == []


def test_too_long_prompts_state_both_numbers(start: Start) -> None:
    live = start(config={"max_prompt_tokens": 100})
    message = problem(live.post(TEXT, json={"prompt": [1] * 101}))["message"]
    assert "101" in message
    assert "100" in message
    message = problem(live.post(TEXT, json={"prompt": [1] * 90, "max_tokens": 500}))["message"]
    assert "590" in message
    assert "512" in message
    assert "422" in message


def test_unknown_fields_get_a_suggestion(start: Start) -> None:
    assert "did you mean temperature?" in problem(start().post(CHAT, json=HI | {"temprature": 1}))["message"]


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_known_fields_that_ask_for_nothing_are_taken(start: Start, path: str) -> None:
    live = start("x")
    neutral = {name: values[0] if values else None for name, values in NEUTRAL.items()}
    labels = {"user": "me", "metadata": {"a": "b"}, "parallel_tool_calls": True, "prompt_cache_key": "k"}
    reply = live.post(path, json=(HI if path == CHAT else P) | neutral | labels)
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_known_fields_that_ask_for_something_are_refused(name: str) -> None:
    from slipstream.api.openai import parse
    from slipstream.errors import UnsupportedField

    with pytest.raises(UnsupportedField) as caught:
        parse({"messages": []} | {name: "something else"}, ChatRequest)
    assert caught.value.param == name


def test_null_is_absent(start: Start) -> None:
    live = start("x")
    for path, kind, body in ((CHAT, ChatRequest, HI), (TEXT, CompletionRequest, P)):
        nothing = dict.fromkeys(set(kind.__struct_fields__) - {"messages", "prompt"})
        assert live.post(path, json=nothing | body).status_code == 200


def test_a_body_needs_no_content_type(start: Start) -> None:
    live = start("Paris")
    headers = {"content-type": "application/x-www-form-urlencoded"}  # what `curl -d` sends
    reply = live.post(CHAT, content=json.dumps(HI).encode(), headers=headers)
    assert reply.json()["choices"][0]["message"]["content"] == "Paris"


def test_wrong_model(start: Start) -> None:
    live = start(config={"served_model_name": "mine"})
    reply = live.post(CHAT, json=HI | {"model": "toy"})
    assert (reply.status_code, problem(reply)["code"]) == (404, "model_not_found")
    assert live.post(CHAT, json=HI | {"model": "mine"}).json()["model"] == "mine"
    assert live.get("/v1/models").json()["data"][0]["id"] == "mine"
    assert live.get("/v1/models/mine").json()["root"] == "toy"
    assert live.get("/v1/models/toy").status_code == 404


def test_no_chat_template(start: Start) -> None:
    live = start(tokenizer=toy_tokenizer(template=None))
    error = problem(live.post(CHAT, json=HI))
    assert error["code"] == "no_chat_template"
    assert live.post(TEXT, json=P).status_code == 200


def test_paths_and_methods(start: Start) -> None:
    live = start()
    missing = live.get("/v1/nothing")
    assert (missing.status_code, problem(missing)["code"]) == (404, "not_found")
    wrong = live.get(CHAT)
    assert (wrong.status_code, problem(wrong)["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted({*ChatRequest.__struct_fields__, *CompletionRequest.__struct_fields__, *NEUTRAL})
ROLES = st.sampled_from(["user", "system", "assistant", "tool", "developer", "x"])
MESSAGES = st.lists(st.fixed_dictionaries({"role": ROLES, "content": VALUES}), max_size=2)
BODIES = st.fixed_dictionaries(
    {}, optional={"messages": MESSAGES | VALUES, "prompt": st.text(max_size=5) | VALUES}
).flatmap(lambda base: st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3).map(lambda more: more | base))


def test_nothing_that_a_client_sends_is_a_server_error(start: Start) -> None:
    live = start("ab")
    client = httpx.Client(base_url=live.url, timeout=20)

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.sampled_from([CHAT, TEXT, "/tokenize", "/detokenize"]), BODIES)
    def attempt(path: str, body: dict[str, Any]) -> None:
        reply = client.post(path, content=json.dumps(body).encode())
        assert reply.status_code < 500, (body, reply.text)
        if reply.status_code != 200:
            problem(reply)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.binary(max_size=40))
    def raw(body: bytes) -> None:
        assert client.post(CHAT, content=body).status_code == 400

    attempt()
    raw()
    client.close()
    check_idle(live)


def check_idle(live: Live) -> None:
    assert live.front.admission.in_flight == 0
    assert "running" not in live.client.ends.values()
