"""Send a batch file's requests to an OpenAI server, many at a time, and write each answer as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx
import orjson

from slipstream.cli.batch_file import BadLine, BatchRequest, ResultFile
from slipstream.errors import RequestFailed

RETRIES = 6
"""Tries again, at growing distances of half a minute together, after a connection error or a 503. A 429 is a promise of
room later: it is asked again without a limit, as its Retry-After says."""

OK, TOO_MANY, UNAVAILABLE = 200, 429, 503


@dataclass
class Tally:
    """How a run went, in lines. `skipped`: had a result from an earlier run."""

    answered: int = 0
    failed: int = 0
    skipped: int = 0


async def run_batch(
    requests: list[BatchRequest | BadLine],
    results: ResultFile,
    http: httpx.AsyncClient,
    *,
    concurrency: int,
    step: Callable[[], None],
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Tally:
    """Answer every request that has no result yet; `step` is called once for each line.

    A refusal is that line's result and the others go on. Raises RequestFailed when the server cannot be reached any
    more: the lines without a result are then done by the next run.
    """
    tally = Tally()
    waiting = iter(requests)

    async def work() -> None:
        for request in waiting:
            if request.custom_id in results.done:
                tally.skipped += 1
            elif isinstance(request, BadLine):
                results.write(request.custom_id, response=None, error=request)
                tally.failed += 1
            else:
                response = await _post(http, request, pause)
                results.write(request.custom_id, response=_as_result(response), error=None)
                if response.status_code == OK:
                    tally.answered += 1
                else:
                    tally.failed += 1
            step()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
    except ExceptionGroup as failures:
        # `except*` would do, but Debian's Python 3.11.2 wraps what is raised in it in a group again.
        told = failures.subgroup(RequestFailed)
        if told is None:
            raise
        raise told.exceptions[0] from None
    return tally


async def _post(
    http: httpx.AsyncClient, request: BatchRequest, pause: Callable[[float], Awaitable[None]]
) -> httpx.Response:
    failures = 0
    while failures <= RETRIES:
        try:
            response = await http.post(request.url, json=request.body)
            if response.status_code == TOO_MANY:
                await pause(float(response.headers.get("retry-after", 1)))
                continue
            if response.status_code != UNAVAILABLE:
                return response
            reason = "503: " + response.text[:200]
        except httpx.TransportError as error:
            reason = type(error).__name__
        failures += 1
        await pause(2.0**failures / 4)
    raise RequestFailed(
        f"the server at {http.base_url} does not answer ({reason}); "
        "run the same command again to go on with the lines that are left"
    )


def _as_result(response: httpx.Response) -> dict[str, object]:
    try:
        body = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        body = {"error": {"message": response.text, "type": "server_error", "param": None, "code": None}}
    return {
        "status_code": response.status_code,
        "request_id": response.headers.get("x-request-id", ""),
        "body": body,
    }
