"""Sends one request and notes when each piece of its stream came in."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from slipstream.bench.rows import Failure, Row
from slipstream.bench.workload import Planned
from slipstream.errors import EndpointError

_PATHS = {"completions": "completions", "chat": "chat/completions"}
_MESSAGE_LIMIT = 300


@dataclass
class _Seen:
    """What has come of one stream so far."""

    chunks: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    done: bool = False


class _StreamError(Exception):
    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


async def send(
    session: aiohttp.ClientSession, url: str, endpoint: str, model: str, planned: Planned, clock: Callable[[], float]
) -> Row:
    """Sends `planned` now and reads its stream to the end. Every failure becomes a row, none is raised.

    `clock` gives seconds since the start of the run. `url` ends in /v1; `endpoint` is completions or chat.
    """
    seen = _Seen()
    failure: Failure | None = None
    sent = clock()
    try:
        async with session.post(f"{url}/{_PATHS[endpoint]}", json={"model": model, **planned.body}) as response:
            if response.status != 200:
                raise _StreamError(f"http_{response.status}", _said(await response.text()))
            async for at, data in _events(response, clock):
                _take(seen, data, at)
        if not seen.done and seen.finish_reason is None:
            raise _StreamError("truncated", "the stream ended without a finish_reason")
        if not seen.chunks and not seen.output_tokens:
            raise _StreamError("empty", "the stream brought no token")
    except TimeoutError:
        failure = Failure("timeout", f"no complete answer within {session.timeout.total:g} s")
    except aiohttp.ClientConnectorError as error:
        failure = Failure("connect", str(error))
    except aiohttp.ClientError as error:
        failure = Failure("disconnected", f"{type(error).__name__}: {error}")
    except _StreamError as error:
        failure = Failure(error.kind, str(error)[:_MESSAGE_LIMIT])
    return Row(
        index=planned.index,
        scheduled=planned.at,
        sent=sent,
        ended=clock(),
        chunks=tuple(seen.chunks),
        prompt_tokens=seen.prompt_tokens,
        output_tokens=seen.output_tokens,
        max_tokens=planned.body.get("max_tokens"),
        finish_reason=seen.finish_reason,
        failure=failure,
    )


async def _events(response: aiohttp.ClientResponse, clock: Callable[[], float]) -> AsyncIterator[tuple[float, bytes]]:
    """(time of the read that completed it, data) of each server-sent event. Events of one read share their time."""
    rest = b""
    async for read in response.content.iter_any():
        at = clock()
        *lines, rest = (rest + read).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield at, line[5:].strip()


def _take(seen: _Seen, data: bytes, at: float) -> None:
    if data == b"[DONE]":
        seen.done = True
        return
    try:
        chunk = json.loads(data)
    except ValueError:
        raise _StreamError("malformed", f"not JSON: {data[:80]!r}") from None
    if not isinstance(chunk, dict):
        raise _StreamError("malformed", f"not an object: {data[:80]!r}")
    if chunk.get("error"):
        raise _StreamError("stream", _said(data.decode(errors="replace")))
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {}
        if choice.get("text") or delta.get("content") or delta.get("reasoning_content"):
            seen.chunks.append(at)
        seen.finish_reason = choice.get("finish_reason") or seen.finish_reason
    if usage := chunk.get("usage"):
        seen.prompt_tokens = usage.get("prompt_tokens")
        seen.output_tokens = usage.get("completion_tokens")


def _said(body: str) -> str:
    """The message of an error in OpenAI's shape, else the body's beginning."""
    try:
        error: Any = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return body.strip()[:_MESSAGE_LIMIT] or "no message"


async def first_model(session: aiohttp.ClientSession, url: str, key_variable: str) -> str:
    """The first model that the endpoint lists. Raises EndpointError that says what to do."""
    try:
        async with session.get(f"{url}/models") as response:
            if response.status in (401, 403):
                raise EndpointError(f"{url} refuses the API key: set {key_variable} to one that it knows")
            if response.status != 200:
                raise EndpointError(
                    f"{url}/models answers with status {response.status}: {_said(await response.text())}"
                    " (is it an OpenAI endpoint, and ready?)"
                )
            listed = json.loads(await response.text())
            return str(listed["data"][0]["id"])
    except (aiohttp.ClientError, TimeoutError) as error:
        raise EndpointError(
            f"nothing answers at {url} ({error}): start one with `slipstream serve`, or name another with --base-url"
        ) from None
    except (ValueError, KeyError, IndexError, TypeError):
        raise EndpointError(f"{url}/models lists no model: name one with --model") from None
