"""/tokenize and /detokenize."""

from __future__ import annotations

from .conftest import Start
from .toys import BOS_ID, ids


def test_tokenize_text(start: Start) -> None:
    live = start()
    assert live.post("/tokenize", json={"prompt": "ab"}).json() == {
        "count": 3,
        "max_model_len": 512,
        "tokens": [BOS_ID, *ids("ab")],
        "token_strs": None,
    }
    bare = live.post("/tokenize", json={"prompt": "ab", "add_special_tokens": False, "return_token_strs": True}).json()
    assert (bare["tokens"], bare["token_strs"]) == (ids("ab"), ["a", "b"])
    assert live.post("/tokenize", json={"prompt": "", "add_special_tokens": False}).json()["count"] == 0


def test_tokenize_messages(start: Start) -> None:
    reply = start().post("/tokenize", json={"model": "toy", "messages": [{"role": "user", "content": "hi"}]}).json()
    assert reply["tokens"] == ids("[user:hi][assistant:")


def test_detokenize(start: Start) -> None:
    live = start()
    assert live.post("/detokenize", json={"tokens": [BOS_ID, *ids("né")]}).json() == {"prompt": "<|begin|>né"}
    wrong = live.post("/detokenize", json={"tokens": [1, 100000]})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "tokens[1]")


def test_one_of_two(start: Start) -> None:
    live = start()
    for body in ({}, {"prompt": "a", "messages": []}):
        assert live.post("/tokenize", json=body).json()["error"]["code"] == "invalid_combination"
