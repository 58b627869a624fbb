"""Inputs that are cut, pairs, and what becomes of vectors."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from slipstream.errors import PromptTooLong, RequestError
from slipstream.text import Tokenizer
from slipstream.text.pooling import check_length, finished, limit_of, pairs


def tokenizer(single: str, pair: str | None = None, **ends: bool) -> Tokenizer:
    """Words a to z are ids 0 to 25; <s> is 26, </s> 27."""
    backend = Backend(models.WordLevel({chr(97 + i): i for i in range(26)}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<s>", "</s>"])
    special = [("<s>", 26), ("</s>", 27)]
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
    return Tokenizer(backend, special={"bos": "<s>", "eos": "</s>"}, **ends)


@pytest.mark.parametrize(
    ("single", "ends", "cut"),
    [
        ("<s> $A </s>", {}, [26, 0, 1, 27]),
        ("$A </s>", {}, [0, 1, 2, 27]),
        ("<s> $A", {}, [26, 0, 1, 2]),
        ("$A", {}, [0, 1, 2, 3]),
        ("$A", {"add_bos": True, "add_eos": True}, [26, 0, 1, 27]),
    ],
)
def test_a_text_is_cut_between_its_special_tokens(single: str, ends: dict[str, bool], cut: list[int]) -> None:
    made = tokenizer(single, **ends)
    assert made.encode_cut("a b c d e f", most=4) == cut
    assert made.encode_cut("a b c d e f", most=None) == made.encode("a b c d e f")
    assert made.encode_cut("a b", most=50) == made.encode("a b")
    assert made.encode_cut("a b c d e f", add_special=False, most=2) == [0, 1]
    assert len(made.encode_cut("a b c d e f", most=1)) == 1


def test_pairs_as_bert_and_as_roberta_spell_them() -> None:
    bert = tokenizer("<s> $A </s>", "<s> $A </s> $B:1 </s>:1")
    assert bert.encode_pair("a b", "c d", most=None) == ([26, 0, 1, 27, 2, 3, 27], 4)
    assert bert.encode_pair("a b", "c d e f", most=7) == ([26, 0, 1, 27, 2, 3, 27], 4)
    assert bert.encode_pair("a b c d", "e", most=5)[0] == [26, 0, 1, 27, 27]
    roberta = tokenizer("<s> $A </s>", "<s> $A </s> </s> $B </s>")
    assert roberta.encode_pair("a", "b c", most=None) == ([26, 0, 27, 27, 1, 2, 27], None)
    with pytest.raises(RequestError, match="not valid Unicode"):
        bert.encode_pair("a", "\ud800", most=None)


def test_vectors() -> None:
    vector = np.asarray([3.0, 4.0, 12.0], np.float32)
    np.testing.assert_allclose(finished(vector, dimensions=None, normalize=True), vector / 13, rtol=1e-6)
    np.testing.assert_allclose(finished(vector, dimensions=2, normalize=True), [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(finished(vector, dimensions=2, normalize=False), [3, 4])
    assert not finished(np.zeros(3, np.float32), dimensions=None, normalize=True).any()


def test_limits() -> None:
    assert [limit_of(asked, 10) for asked in (None, -1, 1, 10)] == [None, 10, 1, 10]
    for asked in (0, -2, 11):
        with pytest.raises(RequestError, match="truncate_prompt_tokens must be -1, or from 1 to the 10"):
            limit_of(asked, 10)
    check_length(10, 10, "input")
    with pytest.raises(PromptTooLong, match="input has 11 tokens, and the model takes at most 10"):
        check_length(11, 10, "input")


def test_pairs() -> None:
    assert pairs("a", ["b", "c"]) == [("a", "b"), ("a", "c")]
    assert pairs(["a", "b"], ["c", "d"]) == [("a", "c"), ("b", "d")]
    for first, second in (([], "a"), ("a", []), (["a", "b"], "c")):
        with pytest.raises(RequestError):
            pairs(first, second)
