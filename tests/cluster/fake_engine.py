"""An engine without a model: the next token is a hash of the seed and of all tokens before it. Starts in no time.

A worker imports it by name; `FakeOptions` travel as JSON in `WorkerConfig.model`. Some prompt tokens make it misbehave.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from msgspec.structs import fields

from slipstream import errors
from slipstream.api.engine import EngineInfo, EngineRequest, EngineStats, TokenLogprobs, TokenOutput
from slipstream.cluster.config import WorkerConfig
from slipstream.errors import RequestError

FACTORY = "tests.cluster.fake_engine:build"
VOCAB = 50_000
POISON, REFUSED, RAISES = 60_000, 60_001, 60_002


class FakeOptions(msgspec.Struct, frozen=True, kw_only=True):
    step_seconds: float = 0.0
    start_seconds: float = 0.0
    max_seqs: int = 64
    vocab_size: int = VOCAB
    decode_layout: str = "pages of 16"
    error_at_start: str | None = None
    exit_at_start: int | None = None
    exit_at_start_from: int = 1
    exit_in_step: int | None = None

    def model(self) -> str:
        return msgspec.json.encode(self).decode()


class Chain:
    """The tokens that follow a history."""

    def __init__(self, seed: int, tokens: list[int]) -> None:
        self._hash = hashlib.sha256(str(seed).encode())
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        self._hash.update(token.to_bytes(4))

    def next(self) -> int:
        token = int.from_bytes(self._hash.copy().digest()[:4]) % VOCAB
        self.append(token)
        return token


def expected(request: EngineRequest) -> list[int]:
    """What a worker that never dies would answer."""
    chain = Chain(request.sampling.seed, request.prompt_token_ids)
    return [chain.next() for _ in range(request.sampling.max_tokens)]


@dataclass
class Row:
    request: EngineRequest
    chain: Chain
    count: int
    fresh: bool = True


class FakeEngine:
    def __init__(self, options: FakeOptions, incarnation: int) -> None:
        self.options = options
        self.incarnation = incarnation
        self.rows: dict[str, Row] = {}
        self.generated = self.steps = 0
        plain = {
            field.name: {str: "fake", int: 1, float: 0.0, bool: True}[field.type]
            for field in fields(EngineInfo)
            if field.required
        }
        self.info = EngineInfo(
            **{**plain, "vocab_size": options.vocab_size, "max_model_len": 100_000, "page_size": 16, "num_pages": 4096}
        )

    @property
    def has_work(self) -> bool:
        return bool(self.rows)

    def add(self, request: EngineRequest) -> None:
        if REFUSED in request.prompt_token_ids:
            raise RequestError("this prompt is refused")
        history = request.prompt_token_ids + request.output_token_ids
        chain = Chain(request.sampling.seed, history)
        self.rows[request.id] = Row(request, chain, len(request.output_token_ids))

    def abort(self, request_id: str) -> bool:
        return self.rows.pop(request_id, None) is not None

    def step(self) -> list[TokenOutput]:
        if self.options.exit_in_step is not None:
            os._exit(self.options.exit_in_step)
        time.sleep(self.options.step_seconds)
        self.steps += 1
        return [self._advance(row) for row in list(self.rows.values())[: self.options.max_seqs]]

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self.rows), generation_tokens=self.generated, steps=self.steps)

    def _advance(self, row: Row) -> TokenOutput:
        request, sampling = row.request, row.request.sampling
        if POISON in request.prompt_token_ids:
            os.kill(os.getpid(), signal.SIGKILL)
        if RAISES in request.prompt_token_ids:
            raise RuntimeError("the device is on fire")
        token, fresh, row.fresh = row.chain.next(), row.fresh, False
        row.count += 1
        self.generated += 1
        done = row.count >= sampling.max_tokens
        if done:
            del self.rows[request.id]
        position = len(request.prompt_token_ids) + row.count
        return TokenOutput(
            id=request.id,
            token_ids=[token],
            logprobs=None if sampling.logprobs is None else [TokenLogprobs(token, -float(position), 1, [], [])],
            prompt_logprobs=[TokenLogprobs(t, -1.0, 1, [], []) for t in request.prompt_token_ids[1:]]
            if fresh and sampling.prompt_logprobs is not None
            else None,
            cached_tokens=self.incarnation if fresh else None,
            finish_reason="length" if done else None,
        )


def build(config: WorkerConfig, report: Callable[[str, int, int], None]) -> FakeEngine:
    options = msgspec.json.decode(config.model, type=FakeOptions)
    report("load", 0, 2)
    time.sleep(options.start_seconds)
    if config.incarnation >= options.exit_at_start_from:
        if options.exit_at_start is not None:
            print("about to exit", flush=True)
            os._exit(options.exit_at_start)
        if options.error_at_start is not None:
            raise getattr(errors, options.error_at_start, RuntimeError)("what a person should read")
    report("load", 2, 2)
    return FakeEngine(options, config.incarnation)
