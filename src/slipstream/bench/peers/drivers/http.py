"""Slipstream as users meet it: `slipstream serve` in processes of its own, asked over HTTP, answers streamed."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import version
from typing import Any

import aiohttp

from slipstream.bench.client import send
from slipstream.bench.rows import Row
from slipstream.bench.workload import Planned

from .protocol import Clock, Prompts, end_with_parent

_START_TIMEOUT = 300.0


class Served:
    """`settings`: model (a name or a file), cpu_precision."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.versions = {"slipstream": version("slipstream")}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._model = settings["model"]
        self._url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "slipstream", "serve", self._model, "--port", str(port)]
        self._server = subprocess.Popen(
            [*command, "--cpu-precision", settings["cpu_precision"]],
            stdin=subprocess.DEVNULL,
            preexec_fn=end_with_parent,
        )
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._ready():
            if self._server.poll() is not None:
                raise RuntimeError(f"`slipstream serve` ended with exit status {self._server.returncode}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"`slipstream serve` was not ready within {_START_TIMEOUT:g} s")
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def generate(self, prompts: Prompts, clock: Clock) -> None:
        """See protocol.Participant. A token that came without text of its own counts at the end of its answer."""
        for index, row in enumerate(asyncio.run(self._all(prompts, clock))):
            if row.failure is not None:
                raise RuntimeError(f"{row.failure.kind}: {row.failure.message}")
            times = [*row.chunks, *[row.ended] * ((row.output_tokens or 0) - len(row.chunks))]
            clock.times[index].extend(times)

    async def _all(self, prompts: Prompts, clock: Clock) -> list[Row]:
        def seconds() -> float:
            return time.perf_counter() - clock.started

        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            name = await self._name(session)
            sent = [
                send(session, f"{self._url}/v1", "completions", name, _planned(index, prompt, clock.tokens), seconds)
                for index, prompt in enumerate(prompts)
            ]
            return list(await asyncio.gather(*sent))

    async def _name(self, session: aiohttp.ClientSession) -> str:
        async with session.get(f"{self._url}/v1/models") as answer:
            return str((await answer.json())["data"][0]["id"])


def _planned(index: int, prompt: list[int], tokens: int) -> Planned:
    body = {
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return Planned(index=index, at=0.0, body=body)


load = Served
