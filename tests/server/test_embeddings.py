"""/v1/embeddings through a socket, with the openai client."""

from __future__ import annotations

import asyncio
import base64
import threading
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from .conftest import Live, Start
from .toys import BOS_ID, TOKENIZER, ids
from .vector_client import SCORE, SIZE, VectorClient, vector_of


def unit(text: str | list[int], size: int = SIZE) -> np.ndarray:
    given = [BOS_ID, *ids(text)] if isinstance(text, str) else text
    cut = vector_of(given)[:size].astype(np.float64)
    return cut / np.linalg.norm(cut)


def error(reply: httpx.Response) -> dict[str, Any]:
    return reply.json()["error"]


def test_all_forms_of_input(start: Start) -> None:
    client = start(client=VectorClient()).openai()
    for given, texts in (
        ("hello", ["hello"]),
        (["hello", "a"], ["hello", "a"]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5, 6, 7], [9]], [[5, 6, 7], [9]]),
    ):
        for encoding in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
            reply = client.embeddings.create(model="toy", input=given, user="me", **encoding)
            assert [one.index for one in reply.data] == list(range(len(texts)))
            assert (reply.object, reply.data[0].object, reply.model) == ("list", "embedding", "toy")
            counts = [len(text) + 1 if isinstance(text, str) else len(text) for text in texts]
            assert reply.usage.prompt_tokens == reply.usage.total_tokens == sum(counts)
            for text, one in zip(texts, reply.data, strict=True):
                vector = one.embedding
                if isinstance(vector, str):
                    vector = np.frombuffer(base64.b64decode(vector), "<f4")
                np.testing.assert_allclose(vector, unit(text), atol=1e-6)


def test_numbers_are_those_of_base64(start: Start) -> None:
    live = start(client=VectorClient())
    as_list, as_bytes = (
        live.post("/v1/embeddings", json={"input": "abc", "encoding_format": kind}).json()["data"][0]["embedding"]
        for kind in ("float", "base64")
    )
    assert np.array_equal(np.asarray(as_list, "<f4"), np.frombuffer(base64.b64decode(as_bytes), "<f4"))


def test_dimensions(start: Start) -> None:
    live = start(client=VectorClient())
    reply = live.openai().embeddings.create(model="toy", input="hello", dimensions=4)
    np.testing.assert_allclose(reply.data[0].embedding, unit("hello", 4), atol=1e-6)
    raw = live.post("/v1/embeddings", json={"input": "hello", "dimensions": 2, "normalize": False}).json()
    np.testing.assert_allclose(raw["data"][0]["embedding"], vector_of([BOS_ID, *ids("hello")])[:2])
    refused = live.post("/v1/embeddings", json={"input": "hello", "dimensions": 3})
    assert (refused.status_code, error(refused)["param"]) == (400, "dimensions")
    assert "one of 2, 4" in error(refused)["message"]


def test_inputs_that_are_refused(start: Start) -> None:
    live = start(client=VectorClient())
    for given, param in (
        ([], "input"),
        ("x" * 512, "input"),
        (["a", [1]], "input"),
        ([[1], []], "input[1]"),
        ([300], "input[0]"),
        ([[1], ["a"]], "input[1][0]"),
    ):
        reply = live.post("/v1/embeddings", json={"input": given})
        assert (reply.status_code, error(reply)["param"]) == (400, param), given
    long = live.post("/v1/embeddings", json={"input": ["a", "x" * 512]})
    assert "input[1] has 513 tokens, and the model takes at most 512" in error(long)["message"]
    assert error(long)["code"] == "context_length_exceeded"
    assert error(live.post("/v1/embeddings", json={"input": "a", "inputs": 1}))["code"] == "unknown_field"
    missing = live.post("/v1/embeddings", json={"model": "other", "input": "a"})
    assert (missing.status_code, error(missing)["code"]) == (404, "model_not_found")


def test_long_inputs_may_be_cut(start: Start) -> None:
    live = start(client=VectorClient())
    body = {"input": ["x" * 600, "abc"], "truncate_prompt_tokens": -1}
    assert live.post("/v1/embeddings", json=body).json()["usage"]["prompt_tokens"] == 512 + 4
    for given in ("abcdef", [1, 2, 3, 4]):
        live.post("/v1/embeddings", json={"input": given, "truncate_prompt_tokens": 3})
    assert [one.prompt_token_ids for one in live.client.requests[-2:]] == [[BOS_ID, *ids("ab")], [1, 2, 3]]
    refused = live.post("/v1/embeddings", json={"input": "a", "truncate_prompt_tokens": 513})
    assert (refused.status_code, error(refused)["param"]) == (400, "truncate_prompt_tokens")


def test_the_wrong_task(start: Start) -> None:
    """Each kind of server says what it is for, and /v1/models too."""
    embeds, generates, scores = start(client=VectorClient()), start(), start(client=VectorClient(info=SCORE))
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    for live, path, body, hint in (
        (embeds, "/v1/chat/completions", chat, "use /v1/embeddings"),
        (embeds, "/v1/completions", {"prompt": "a"}, "use /v1/embeddings"),
        (generates, "/v1/embeddings", {"input": "a"}, "--runner pooling"),
        (generates, "/v1/rerank", {"query": "a", "documents": ["b"]}, "--runner pooling"),
        (scores, "/v1/embeddings", {"input": "a"}, "use /v1/rerank"),
    ):
        reply = live.post(path, json=body)
        assert (reply.status_code, error(reply)["code"]) == (400, "wrong_task")
        assert hint in error(reply)["message"]
    told = [live.get("/v1/models").json()["data"][0] for live in (embeds, generates, scores)]
    assert [one["task"] for one in told] == ["embed", "generate", "score"]
    assert [one.get("embedding_size") for one in told] == [SIZE, None, None]


def test_many_inputs_take_a_share_of_the_places(start: Start) -> None:
    live = start(client=VectorClient(), config={"max_queue": 8})
    reply = live.post("/v1/embeddings", json={"input": [[i + 1] for i in range(100)]}).json()
    for i, one in enumerate(reply["data"]):
        np.testing.assert_allclose(one["embedding"], unit([i + 1]), atol=1e-6)
    assert live.client.most == 2


def test_a_full_queue(start: Start) -> None:
    client = VectorClient(gate=asyncio.Event())
    live = start(client=client, config={"max_queue": 4})
    first = [
        threading.Thread(target=live.post, args=("/v1/embeddings",), kwargs={"json": {"input": "a"}}) for _ in range(4)
    ]
    for thread in first:
        thread.start()
    live.until(lambda: live.front.admission.in_flight == 4)
    refused = live.post("/v1/embeddings", json={"input": "b"})
    assert (refused.status_code, error(refused)["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    live.call(client.gate.set)
    for thread in first:
        thread.join(20)
    assert live.front.admission.in_flight == 0


def test_a_client_that_leaves_aborts_its_inputs(start: Start) -> None:
    client = VectorClient(gate=asyncio.Event())
    live = start(client=client)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{live.url}/v1/embeddings", json={"input": ["a"] * 30}, timeout=0.5)
    live.until(lambda: client.running == 0 and live.front.admission.in_flight == 0)
    assert len(client.requests) == 30


def test_an_engine_that_gives_up(start: Start) -> None:
    live = start(client=VectorClient(broken=77))
    reply = live.post("/v1/embeddings", json={"input": [[1], [77], [2]]})
    assert (reply.status_code, error(reply)["code"]) == (500, "engine_error")
    assert "the engine is broken" in error(reply)["message"]
    live.until(lambda: live.front.admission.in_flight == 0)


def test_keys_and_limits_hold_here_too(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPSTREAM_API_KEY", "secret")
    live = start(client=VectorClient(), config={"max_body_bytes": 1000})
    assert live.post("/v1/embeddings", json={"input": "a"}).status_code == 401
    assert live.openai(api_key="secret").embeddings.create(model="toy", input="a").data
    key = {"authorization": "Bearer secret"}
    assert live.post("/v1/embeddings", json={"input": "a" * 2000}, headers=key).status_code == 413
    with pytest.raises(openai.BadRequestError):
        live.openai(api_key="secret").embeddings.create(model="toy", input=[])


def test_metrics(start: Start) -> None:
    live: Live = start(client=VectorClient())
    live.post("/v1/embeddings", json={"input": ["ab", "c"]})
    text = live.get("/metrics").text
    assert 'vllm:prompt_tokens_total{engine="0",model_name="toy"} 5.0' in text
    assert 'vllm:generation_tokens_total{engine="0",model_name="toy"} 0.0' in text
    assert 'vllm:request_success_total{engine="0",finished_reason="stop",model_name="toy"} 2.0' in text


def test_a_text_needs_a_tokenizer(start: Start) -> None:
    live = start(client=VectorClient(), tokenizer=None)
    assert error(live.post("/v1/embeddings", json={"input": "a"}))["code"] == "no_tokenizer"
    assert live.post("/v1/embeddings", json={"input": [1, 2]}).status_code == 200
    assert TOKENIZER.encode_cut("ab", most=2) == [BOS_ID, *ids("a")]
