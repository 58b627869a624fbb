"""`slipstream generate`: a file of requests in, a file of answers out. It can be stopped and goes on where it was."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from slipstream.cli.batch_file import BadLine, BatchRequest, ResultFile, read_requests
from slipstream.cli.batch_run import Tally, run_batch
from slipstream.cli.console import err
from slipstream.cli.progress import StageBars
from slipstream.cli.replies import base_url, key_headers
from slipstream.engine.config import EngineConfig
from slipstream.errors import ConfigError

if TYPE_CHECKING:
    import httpx

TERMINATED = 143
"""The exit code after SIGTERM, as shells give it."""


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Settings of a batch.

    Parameters
    ----------
    model
        The model to run in this process; smollm2-135m if none is named. Not with --url.
    url
        Send the requests to the server at this address. Without it the model runs here.
    concurrency
        Requests under way at a time. None: twice --max-seqs, so that a free place is taken at once.
    """

    model: str | None = None
    url: str | None = None
    concurrency: int | None = None

    def __post_init__(self) -> None:
        """Refuse settings that cannot work. Raises ConfigError."""
        if self.concurrency is not None and self.concurrency < 1:
            raise ConfigError(f"concurrency must be at least 1, got {self.concurrency}")
        if self.url is not None and self.model is not None:
            raise ConfigError("--model loads a model in this process: leave it out with --url, or leave --url out")


def generate(
    source: Path,
    target: Path,
    /,
    *,
    options: Annotated[GenerateOptions, Parameter(name="*")] = GenerateOptions(),
    engine: Annotated[EngineConfig, Parameter(name="*")] = EngineConfig(),
) -> int:
    """Answer a JSONL file of requests in OpenAI's batch format.

    A line is {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}, or the same with
    /v1/completions or /v1/embeddings. Run the same command again after an interruption: lines that have a result are
    skipped. The exit code is 1 if a line of this run failed; its result says why.

    Parameters
    ----------
    source
        The file of requests.
    target
        The file of results. It is added to, never overwritten.
    """
    requests = list(read_requests(source))
    results = ResultFile(target)
    try:
        if all(request.custom_id in results.done for request in requests):
            tally = Tally(skipped=len(requests))
        else:
            tally = asyncio.run(_answer(requests, results, options, engine))
    except (KeyboardInterrupt, asyncio.CancelledError) as stop:
        left = sum(request.custom_id not in results.done for request in requests)
        err().print(f"stopped with {left} of {len(requests)} lines left: run the same command again to go on with them")
        if isinstance(stop, KeyboardInterrupt):
            raise
        return TERMINATED
    finally:
        results.close()
    err().print(f"{tally.answered} answered, {tally.failed} failed, {tally.skipped} had a result before: {target}")
    return 1 if tally.failed else 0


async def _answer(
    requests: list[BatchRequest | BadLine], results: ResultFile, options: GenerateOptions, engine: EngineConfig
) -> Tally:
    current = asyncio.current_task()
    assert current is not None
    with contextlib.suppress(NotImplementedError):  # Windows has no signal handlers on loops
        # As Ctrl-C does: the worker and its socket are closed, not left behind.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, current.cancel)
    concurrency = options.concurrency or 2 * engine.max_seqs * engine.dp
    with StageBars() as bars:
        async with _client(options, engine, concurrency, bars) as http:
            count = 0

            def step() -> None:
                nonlocal count
                count += 1
                bars("generate", count, len(requests))

            bars("generate", 0, len(requests))
            return await run_batch(requests, results, http, concurrency=concurrency, step=step)


@contextlib.asynccontextmanager
async def _client(
    options: GenerateOptions, engine: EngineConfig, concurrency: int, bars: StageBars
) -> AsyncIterator[httpx.AsyncClient]:
    import httpx

    if options.url is not None:
        limits = httpx.Limits(max_connections=concurrency)
        timeout = httpx.Timeout(None, connect=10)
        async with httpx.AsyncClient(
            base_url=base_url(options.url), headers=key_headers(), limits=limits, timeout=timeout
        ) as http:
            yield http
        return
    from slipstream.cli.serving import application
    from slipstream.server.config import ServerConfig

    # The server's limits protect it from strangers; the lines of one's own file are not refused for their number.
    server = ServerConfig(max_queue=1_000_000, max_body_bytes=1 << 30, request_timeout=None, log_level="warning")
    async with application(options.model, engine, server, bars) as app:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://slipstream", headers=key_headers(), timeout=None
        ) as http:
            yield http
