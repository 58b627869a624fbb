"""/v1/rerank and /v1/score: by a model that reads pairs, and by the cosine of vectors."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from slipstream.api.engine import PoolingInfo

from .conftest import Start
from .test_embeddings import error, unit
from .toys import BOS_ID, ids
from .vector_client import CLASSIFY, SCORE, VectorClient, vector_of

DOCUMENTS = ["zebra", "a", {"text": "apple"}, "kiwi"]
TEXTS = ["zebra", "a", "apple", "kiwi"]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_by_cosine(path: str, start: Start) -> None:
    live = start(client=VectorClient())
    reply = live.post(path, json={"model": "toy", "query": "appla", "documents": DOCUMENTS}).json()
    expected = {i: float(unit("appla") @ unit(text)) for i, text in enumerate(TEXTS)}
    order = sorted(expected, key=lambda i: -expected[i])
    assert [one["index"] for one in reply["results"]] == order
    for one in reply["results"]:
        assert one["document"] == {"text": TEXTS[one["index"]]}
        assert abs(one["relevance_score"] - expected[one["index"]]) < 1e-6
    assert reply["model"] == "toy" and reply["id"].startswith("rerank-")
    assert reply["usage"]["total_tokens"] == sum(len(text) + 1 for text in ["appla", *TEXTS])


def test_by_a_model_that_reads_pairs(start: Start) -> None:
    """The toy's vector is its last token's share: documents come in the order of their last letters."""
    live = start(client=VectorClient(info=SCORE))
    body = {"query": "q", "documents": DOCUMENTS, "top_n": 2, "return_documents": False}
    results = live.post("/v1/rerank", json=body).json()["results"]
    assert [one["index"] for one in results] == [3, 2]
    assert all("document" not in one for one in results)
    assert [one.prompt_token_ids for one in live.client.requests] == [ids("q" + text) for text in TEXTS]


def test_what_is_refused(start: Start) -> None:
    live = start(client=VectorClient(info=SCORE))
    for body, param in (
        ({"query": "q", "documents": []}, "documents"),
        ({"query": "q", "documents": ["a"], "top_n": -1}, "top_n"),
        ({"query": "q", "documents": [{"title": "a"}]}, "documents[0].title"),
        ({"query": "q", "documents": ["b" * 512]}, "pair 0"),
    ):
        reply = live.post("/v1/rerank", json=body)
        assert (reply.status_code, error(reply)["param"]) == (400, param), body
    cut = live.post("/v1/rerank", json={"query": "q", "documents": ["b" * 600], "truncate_prompt_tokens": -1})
    assert cut.json()["usage"]["total_tokens"] == 512
    live.post("/v1/rerank", json={"query": "query", "documents": ["text"], "truncate_prompt_tokens": 7})
    assert live.client.requests[-1].prompt_token_ids == ids("queryte")
    live.post("/v1/rerank", json={"query": "query", "documents": ["text"], "truncate_prompt_tokens": 3})
    assert live.client.requests[-1].prompt_token_ids == ids("que")


def test_score(start: Start) -> None:
    live = start(client=VectorClient())
    for first, second, wanted in (
        ("one", "two", [("one", "two")]),
        ("one", ["two", "one"], [("one", "two"), ("one", "one")]),
        (["one", "x"], ["two", "y"], [("one", "two"), ("x", "y")]),
    ):
        reply = live.post("/v1/score", json={"text_1": first, "text_2": second}).json()
        assert [one["index"] for one in reply["data"]] == list(range(len(wanted)))
        found = [one["score"] for one in reply["data"]]
        np.testing.assert_allclose(found, [unit(a) @ unit(b) for a, b in wanted], atol=1e-6)
    refused = live.post("/score", json={"text_1": ["a", "b"], "text_2": ["a", "b", "c"]})
    assert (refused.status_code, error(refused)["param"]) == (400, "text_2")
    assert BOS_ID in live.client.requests[0].prompt_token_ids


def test_labels(start: Start) -> None:
    live = start(client=VectorClient(info=CLASSIFY))
    for path in ("/v1/classify", "/classify"):
        reply = live.post(path, json={"input": ["zebra", "kiwi"]}).json()
        assert reply["id"].startswith("classify-") and reply["object"] == "list"
        for i, (one, text) in enumerate(zip(reply["data"], ["zebra", "kiwi"], strict=True)):
            shares = vector_of([BOS_ID, *ids(text)])
            assert (one["index"], one["num_classes"]) == (i, 6)
            np.testing.assert_allclose(one["probs"], shares, atol=1e-6)
            assert one["label"] == "abcdef"[int(np.argmax(shares))]
    refused = live.post("/v1/embeddings", json={"input": "a"})
    assert (refused.status_code, error(refused)["code"]) == (400, "wrong_task")
    assert "/v1/classify" in error(refused)["message"]
    refused = start(client=VectorClient()).post("/v1/classify", json={"input": "a"})
    assert error(refused)["code"] == "wrong_task"


def test_an_instruction(start: Start) -> None:
    asked = replace(SCORE, pooling=PoolingInfo(task="score", size=1, prompted=True, instruction="find"))
    live = start(client=VectorClient(info=replace(asked, max_model_len=2048)))
    body = {"query": "q", "documents": ["a"]}
    for said, expected in ((None, "find"), ("other", "other")):
        live.post("/v1/rerank", json=body | ({} if said is None else {"instruction": said}))
        wanted = ids(f"<Instruct>: {expected}\n<Query>: q\n<Document>: a")
        found = live.client.requests[-1].prompt_token_ids
        assert any(found[i : i + len(wanted)] == wanted for i in range(len(found)))
    reply = start(client=VectorClient(info=SCORE)).post("/v1/rerank", json=body | {"instruction": "find"})
    assert (reply.status_code, error(reply)["param"]) == (400, "instruction")
