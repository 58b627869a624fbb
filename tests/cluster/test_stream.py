"""One request's stream, without processes: what a replay asks for, and what a reader gets."""

from __future__ import annotations

import pytest

from slipstream.api.engine import TokenLogprobs, TokenOutput
from slipstream.cluster.stream import Stream
from slipstream.errors import RequestFailed
from tests.cluster.conftest import request_of


def test_a_replay_goes_on_from_every_token_that_came() -> None:
    stream = Stream(request_of(1, max_tokens=9, prompt_logprobs=0, logprobs=2))
    first = stream.submit("0:r1")
    assert (first.id, first.output_token_ids) == ("0:r1", [])
    assert first.sampling == stream.request.sampling
    logprobs = [TokenLogprobs(1, -1.0, 1, [], [])]
    stream.push(TokenOutput(id="0:r1", token_ids=[4], prompt_logprobs=logprobs, cached_tokens=0))
    stream.push(TokenOutput(id="0:r1", token_ids=[5, 6]))
    stream.orphan()
    replay = stream.submit("1:r1")
    assert replay.id == "1:r1" and stream.text == [*first.prompt_token_ids, 4, 5, 6]
    assert replay.output_token_ids == [4, 5, 6]
    assert replay.prompt_token_ids == first.prompt_token_ids and replay.arrival == first.arrival
    assert replay.sampling.prompt_logprobs is None, "they came already: the engine need not compute them again"
    assert (replay.sampling.seed, replay.sampling.logprobs) == (first.sampling.seed, 2)


def test_deaths_without_a_token_are_counted_in_a_row() -> None:
    stream = Stream(request_of(1))
    counts = []
    for tokens in ([], [], [3], []):
        stream.submit("0:r1")
        stream.push(TokenOutput(id="0:r1", token_ids=tokens))
        stream.orphan()
        counts.append(stream.fruitless)
    assert counts == [1, 2, 0, 1]


async def test_what_comes_once_comes_once_after_a_replay_too() -> None:
    stream = Stream(request_of(1))
    for cached, seconds in ((3, 0.5), (0, 9.0)):
        stream.push(
            TokenOutput(
                id="0:r1", token_ids=[1], cached_tokens=cached, queue_seconds=seconds, prefill_seconds=2 * seconds
            )
        )
    output = await stream.take()
    assert (output.cached_tokens, output.queue_seconds, output.prefill_seconds) == (3, 0.5, 1.0)
    stream.push(TokenOutput(id="0:r1", token_ids=[2]))
    output = await stream.take()
    assert (output.cached_tokens, output.queue_seconds, output.prefill_seconds) == (None, None, None)


async def test_tokens_come_before_the_failure() -> None:
    stream = Stream(request_of(1))
    stream.push(TokenOutput(id="0:r1", token_ids=[1, 2]))
    stream.fail(RequestFailed("no worker"))
    output = await stream.take()
    assert (output.id, output.token_ids, output.finish_reason) == ("r1", [1, 2], None)
    with pytest.raises(RequestFailed, match="no worker"):
        await stream.take()
