"""The conversation with a source of replies in memory, and the source that speaks to a server."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import httpx
import pytest

from slipstream.cli.chat import ChatOptions, Conversation, printable, speed
from slipstream.cli.replies import Message, Piece, ServerReplies, base_url
from slipstream.errors import ConfigError, RequestFailed


class Scripted:
    """Replies word by word with what it was asked; `interrupt` raises Ctrl-C, `fail` an error, after one word."""

    model = "scripted"

    def __init__(self) -> None:
        self.asked: list[list[Message]] = []
        self.sampling: list[Mapping[str, Any]] = []
        self.closed = 0

    def stream(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Generator[Piece, None, None]:
        self.asked.append(list(messages))
        self.sampling.append(sampling)
        text = messages[-1]["content"]
        try:
            yield Piece("you ")
            if text == "interrupt":
                raise KeyboardInterrupt
            if text == "fail":
                raise RequestFailed("the worker is gone")
            yield Piece("said ")
            yield Piece(text, tokens=3)
        finally:
            self.closed += 1


def talk(turns: list[str], options: ChatOptions | None = None) -> tuple[Scripted, Conversation, int]:
    replies = Scripted()
    ticks = itertools.count()
    conversation = Conversation(replies, options or ChatOptions(), clock=lambda: float(next(ticks)))
    return replies, conversation, conversation.run(iter(turns))


def test_each_turn_carries_the_ones_before(capsys: pytest.CaptureFixture[str]) -> None:
    replies, conversation, code = talk(["one\n", "\n", "two\n"])
    assert code == 0
    assert [m["content"] for m in replies.asked[1]] == ["one", "you said one", "two"]
    assert [m["role"] for m in conversation.messages] == ["user", "assistant", "user", "assistant"]
    captured = capsys.readouterr()
    assert captured.out == "you said one\nyou said two\n"
    assert "3 tokens, first after 1000 ms, 2.0 tokens/s" in captured.err


def test_commands() -> None:
    options = ChatOptions(system="Be brief.", seed=3, temperature=0)
    replies, conversation, _ = talk(["one", "/new", "two", "/exit", "three"], options)
    assert [m["content"] for m in replies.asked[1]] == ["Be brief.", "two"]
    assert len(replies.asked) == 2
    assert conversation.messages[-1] == {"role": "assistant", "content": "you said two"}
    assert replies.sampling[0] == {"temperature": 0, "top_p": 0.95, "max_tokens": 1024, "seed": 3}


def test_interrupting_keeps_what_was_said() -> None:
    replies, conversation, code = talk(["interrupt", "next"])
    assert code == 0
    assert [m["content"] for m in conversation.messages] == ["interrupt", "you ", "next", "you said next"]
    assert replies.closed == 2


def test_a_failed_turn_is_taken_back(capsys: pytest.CaptureFixture[str]) -> None:
    _, conversation, code = talk(["one", "fail"])
    assert code == 1
    assert [m["content"] for m in conversation.messages] == ["one", "you said one"]
    assert "error: the worker is gone" in capsys.readouterr().err


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[2Jb\r\x07\x9bc\n\té漢\u200d") == "a[2Jbc\n\té漢\u200d"


def test_speed_of_one_token_has_no_rate() -> None:
    assert speed(1, 0.25, 0.0) == "1 tokens, first after 250 ms"


def server(handler: Callable[[httpx.Request], httpx.Response]) -> httpx.Client:
    return httpx.Client(transport=httpx.MockTransport(handler), base_url="http://test")


def events(*values: Any) -> Iterator[bytes]:
    for value in values:
        yield b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def delta(text: str | None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


def test_a_server_streams() -> None:
    bodies: list[dict[str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "tiny"}]})
        bodies.append(json.loads(request.content))
        usage = {"choices": [], "usage": {"completion_tokens": 2}}
        return httpx.Response(200, content=b"".join(events(delta(None), delta("Pa"), delta("ris"), usage, b"[DONE]")))

    with server(handler) as http:
        replies = ServerReplies(http)
        pieces = list(replies.stream([{"role": "user", "content": "?"}], {"temperature": 0}))
    assert replies.model == "tiny"
    assert pieces == [Piece("Pa"), Piece("ris"), Piece("", 2)]
    assert bodies[0]["model"] == "tiny"
    assert bodies[0]["temperature"] == 0
    assert bodies[0]["stream_options"] == {"include_usage": True}


def test_a_refusal_and_an_error_in_the_stream_are_errors() -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        return httpx.Response(400, json={"error": {"message": "too long", "code": "x"}})

    def break_off(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=b"".join(events(delta("Pa"), {"error": {"message": "worker died"}})))

    with server(refuse) as http, pytest.raises(RequestFailed, match=r"refused \(400\): too long"):
        list(ServerReplies(http, "m").stream([], {}))
    with server(break_off) as http, pytest.raises(RequestFailed, match="worker died"):
        list(ServerReplies(http, "m").stream([], {}))


def test_nobody_there() -> None:
    def absent(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with server(absent) as http, pytest.raises(RequestFailed, match="start one with slipstream serve"):
        ServerReplies(http)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://a:8000", "http://a:8000"),
        ("http://a:8000/v1/", "http://a:8000"),
        ("a:8000", "http://a:8000"),
        ("https://a/proxy/v1", "https://a/proxy"),
    ],
)
def test_addresses(url: str, base: str) -> None:
    assert base_url(url) == base


def test_no_address() -> None:
    with pytest.raises(ConfigError, match="not the address of a server"):
        base_url("ftp://a")
