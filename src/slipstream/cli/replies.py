"""Where `slipstream chat` gets its replies: a running server, or an engine in this process."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import orjson

from slipstream.errors import ConfigError, RequestFailed

Message = Mapping[str, str]
API_KEY_VARIABLE = "SLIPSTREAM_API_KEY"


@dataclass(frozen=True)
class Piece:
    """A part of a reply. `tokens`: how many the reply has so far; None where the source does not say yet."""

    text: str
    tokens: int | None = None


class Replies(Protocol):
    """A source of replies. `model` is the name that it answers under."""

    @property
    def model(self) -> str:
        """The model's name."""

    def stream(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Generator[Piece, None, None]:
        """The reply to a conversation, as it is made. Closing the iterator stops it."""


def client(url: str, *, timeout: float | None = None) -> httpx.Client:
    """An HTTP client for an OpenAI server at `url`, with or without a final /v1; the key is SLIPSTREAM_API_KEY's."""
    return httpx.Client(base_url=base_url(url), headers=key_headers(), timeout=httpx.Timeout(timeout, connect=10))


def base_url(url: str) -> str:
    """`url` without a final /v1 and with a scheme. Raises ConfigError for what is not a web address."""
    full = url if "://" in url else f"http://{url}"
    if not full.startswith(("http://", "https://")):
        raise ConfigError(f"{url!r} is not the address of a server: write one such as http://127.0.0.1:8000")
    return full.rstrip("/").removesuffix("/v1")


def key_headers() -> dict[str, str]:
    """The Authorization header, if the variable SLIPSTREAM_API_KEY is set."""
    key = os.environ.get(API_KEY_VARIABLE, "").strip()
    return {"Authorization": f"Bearer {key}"} if key else {}


class ServerReplies:
    """Replies of a server that speaks OpenAI's API. `model` None takes the first one that it lists."""

    def __init__(self, http: httpx.Client, model: str | None = None) -> None:
        """Raises RequestFailed if the server does not answer, or refuses."""
        self._http = http
        self.model = model or self._first_model()

    def _first_model(self) -> str:
        try:
            response = self._http.get("/v1/models")
        except httpx.TransportError as error:
            raise unreachable(self._http, error) from error
        require_success(response)
        return str(response.json()["data"][0]["id"])

    def stream(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Generator[Piece, None, None]:
        """One chat completion over server-sent events."""
        body = {
            "model": self.model,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            **sampling,
        }
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if not response.is_success:
                    response.read()
                require_success(response)
                yield from _pieces(response.iter_lines())
        except httpx.TransportError as error:
            raise unreachable(self._http, error) from error


def _pieces(lines: Iterator[str]) -> Iterator[Piece]:
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        event = orjson.loads(data)
        if "error" in event:
            raise RequestFailed(str(event["error"].get("message", event["error"])))
        text = "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))
        usage = event.get("usage") or {}
        if text or usage:
            yield Piece(text, usage.get("completion_tokens"))


def require_success(response: httpx.Response) -> None:
    """Raise RequestFailed, with what the server said, for an answer that is an error."""
    if response.is_success:
        return
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text
    raise RequestFailed(f"{response.url.host} refused ({response.status_code}): {message}")


def unreachable(http: httpx.Client, error: httpx.TransportError) -> RequestFailed:
    """The error of a server that does not answer."""
    return RequestFailed(
        f"no server answers at {http.base_url} ({type(error).__name__}): start one with slipstream serve"
    )
