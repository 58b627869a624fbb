"""/v1/rerank and /v1/score: by a model that reads pairs, and by the cosine of vectors."""

from __future__ import annotations

import numpy as np
import pytest

from .conftest import Start
from .test_embeddings import error, unit
from .toys import BOS_ID, ids
from .vector_client import SCORE, VectorClient

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
