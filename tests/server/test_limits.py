"""What is refused whatever it asks for: too many, too large, too long, without a key, from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from slipstream.errors import ConfigError, Overloaded, RequestError
from slipstream.server import ServerConfig
from slipstream.server.admission import Admission
from slipstream.server.config import api_keys
from slipstream.text import Tokenizer

from .conftest import Live, Start

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}
ASK = HI["messages"]


def hold(live: Live, count: int) -> list[openai.Stream[object]]:
    """Streams that have begun and not ended."""
    streams = [live.openai().chat.completions.create(model="toy", messages=ASK, stream=True) for _ in range(count)]
    live.until(lambda: live.front.admission.in_flight == count)
    return streams


def test_a_full_queue_answers_429_and_when_to_return(start: Start) -> None:
    live = start("x" * 50, delay=0.02, config={"max_queue": 2})
    streams = hold(live, 2)
    with pytest.raises(openai.RateLimitError) as caught:
        live.openai().chat.completions.create(model="toy", messages=ASK)
    assert caught.value.code == "queue_full"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
    streams[0].close()
    live.until(lambda: live.front.admission.in_flight == 1)
    assert live.openai().chat.completions.create(model="toy", messages=ASK, max_tokens=1).choices
    streams[1].close()


def test_more_choices_than_the_queue_can_never_get_in(start: Start) -> None:
    reply = start(config={"max_queue": 2}).post("/v1/completions", json={"prompt": ["a", "b", "c"]})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "too_many_choices")


async def test_retry_after_follows_the_pace() -> None:
    now = 0.0
    admission = Admission(2, clock=lambda: now)

    def refused(count: int) -> int:
        with pytest.raises(Overloaded) as caught, admission.admit(count):
            raise AssertionError
        return caught.value.retry_after

    with admission.admit(2):
        assert refused(1) == 1  # nothing has finished: no pace to go by
    for _ in range(3):
        now += 4
        with admission.admit(1):
            pass
    with admission.admit(2):
        assert refused(1) == 3  # five ends in the 12 s since the first
        assert refused(2) == 6
        now += 1000
        assert refused(2) == 60
    with pytest.raises(RequestError), admission.admit(3):
        raise AssertionError
    assert admission.in_flight == 0


def test_a_text_that_cannot_fit_is_refused_unread(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    encode = Tokenizer.encode

    def spy(self: Tokenizer, text: str, **options: bool) -> list[int]:
        encoded.append(len(text))
        return encode(self, text, **options)

    monkeypatch.setattr(Tokenizer, "encode", spy)
    live = start(config={"max_prompt_tokens": 40})
    text = "x" * 1_000_000
    for path, body, param in (
        ("/v1/completions", {"prompt": text}, "prompt"),
        ("/v1/completions", {"prompt": ["hi", text]}, "prompt[1]"),
        (CHAT, {"messages": [{"role": "user", "content": text}]}, "messages"),
    ):
        reply = live.post(path, json=body)
        problem = reply.json()["error"]
        assert (reply.status_code, problem["code"], problem["param"]) == (400, "context_length_exceeded", param)
        assert "at most 40" in problem["message"]
    assert max(encoded, default=0) < 1000
    # A text is counted however long it is where counting is what was asked for.
    assert live.post("/tokenize", json={"prompt": "x" * 5000, "add_special_tokens": False}).json()["count"] == 5000


@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_are_refused(start: Start, chunked: bool) -> None:
    live = start(config={"max_body_bytes": 1000})
    body = json.dumps(HI | {"user": "x" * 5000}).encode()

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(body), 500):
            yield body[at : at + 500]

    reply = live.post(CHAT, content=pieces() if chunked else body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_large")
    assert live.post(CHAT, json=HI).status_code == 200


def test_a_request_that_takes_too_long(start: Start) -> None:
    live = start("abcdef", delay=0.1, config={"request_timeout": 0.25})
    reply = live.post(CHAT, json=HI)
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "timeout")
    streamed = live.post(CHAT, json=HI | {"stream": True})
    assert streamed.status_code == 200
    events = streamed.text.strip().split("\n\n")
    assert json.loads(events[-2].removeprefix("data: "))["error"]["type"] == "timeout_error"
    assert events[-1] == "data: [DONE]"
    assert set(live.client.ends.values()) == {"closed"}


@pytest.fixture
def keyed(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Live:
    monkeypatch.setenv("SLIPSTREAM_API_KEY", "third")
    path = tmp_path / "keys"
    path.write_text("# ours\nfirst\n\nsecond  \n")
    return start("x", config={"api_key_file": path})


@pytest.mark.parametrize("key", ["first", "second", "third"])
def test_every_key_opens(keyed: Live, key: str) -> None:
    assert keyed.openai(api_key=key).chat.completions.create(model="toy", messages=ASK).choices


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "missing_api_key"),
        ("Bearer", "missing_api_key"),
        ("Basic first", "missing_api_key"),
        ("Bearer firs", "invalid_api_key"),
        ("Bearer # ours", "invalid_api_key"),
        ("Bearer k\xe9y", "invalid_api_key"),
    ],
)
def test_no_other_key_does(keyed: Live, header: str | None, code: str) -> None:
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    for path in ("/v1/models", "/nowhere", "/v1/models/"):
        reply = keyed.get(path, headers=headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, code)
        assert reply.headers["www-authenticate"] == "Bearer"
    for path in (CHAT, "/v1/completions", "/tokenize", "/detokenize"):
        assert keyed.post(path, json=HI, headers=headers).status_code == 401


def test_probes_need_no_key(keyed: Live) -> None:
    for path in ("/health", "/ready", "/metrics", "/version", "/openapi.json", "/docs"):
        assert keyed.get(path).status_code == 200


def test_key_files_that_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        api_keys(ServerConfig(api_key_file=tmp_path / "none"), {})
    path = tmp_path / "keys"
    path.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="no API key"):
        api_keys(ServerConfig(api_key_file=path), {})
    path.write_text("good\nk\xe9y\n")
    with pytest.raises(ConfigError, match="API key 2") as caught:
        api_keys(ServerConfig(api_key_file=path), {})
    assert "k\xe9y" not in str(caught.value)


def test_cors(start: Start) -> None:
    live = start("x", config={"cors_origins": ("https://a.example",)})
    ours = {"origin": "https://a.example", "sec-fetch-site": "cross-site"}
    asked = httpx.options(
        live.url + CHAT,
        headers=ours | {"access-control-request-method": "POST", "access-control-request-headers": "authorization"},
    )
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == "https://a.example"
    reply = live.post(CHAT, json=HI, headers=ours)
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == "https://a.example"
    refused = live.post(CHAT, json={}, headers=ours)  # errors can be read by the page too
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (400, "https://a.example")
    other = {"origin": "https://b.example", "sec-fetch-site": "cross-site"}
    denied = live.post(CHAT, json=HI, headers=other)
    assert (denied.status_code, denied.json()["error"]["code"]) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in denied.headers


def test_the_server_s_own_page_may_call_it(start: Start) -> None:
    headers = {"origin": "http://whatever", "sec-fetch-site": "same-origin"}
    assert start("x").post(CHAT, json=HI, headers=headers).status_code == 200


def test_cors_is_off_unless_asked_for(start: Start) -> None:
    reply = start("x").post(CHAT, json=HI, headers={"origin": "https://a.example"})
    assert "access-control-allow-origin" not in reply.headers


def test_cors_for_all(start: Start) -> None:
    live = start("x", config={"cors_origins": ("*",)})
    headers = {"origin": "https://a.example", "sec-fetch-site": "cross-site"}
    assert live.post(CHAT, json=HI, headers=headers).headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    "field",
    [
        {"port": 70000},
        {"max_queue": 0},
        {"max_body_bytes": 0},
        {"max_prompt_tokens": 0},
        {"request_timeout": 0},
        {"request_timeout": float("nan")},
        {"drain_timeout": -1},
    ],
)
def test_settings_that_cannot_work(field: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(field))):
        ServerConfig(**field)  # type: ignore[arg-type]
