"""Pairs of texts in the prompt of a model that answers."""

from __future__ import annotations

import pytest

from slipstream.api.engine import PoolingInfo
from slipstream.errors import RequestError
from slipstream.text import Tokenizer
from slipstream.text.pairs import encode_prompted
from slipstream.text.pooling import scoring

from .conftest import SPECS, loaded

# As the model card of Qwen3-Reranker puts it together.
PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
ASKED = PoolingInfo(task="score", size=1, labels=("yes",), prompted=True)


def text_of(tokenizer: Tokenizer, query: str, document: str, instruction: str | None, most: int | None = None) -> str:
    ids = encode_prompted(tokenizer, query, document, instruction, most=most).token_ids
    return tokenizer.decode(ids, skip_special=False)


@pytest.mark.parametrize("instruction", [None, "Find the {{ braces }}"])
def test_the_prompt_of_qwen3_reranker(instruction: str | None) -> None:
    """Token by token that of the model card, which encodes its three parts apart."""
    tokenizer = loaded("smollm2")
    pair = f"<Instruct>: {instruction or INSTRUCTION}\n<Query>: what is it?\n<Document>: A document, 42."
    assert text_of(tokenizer, "what is it?", "A document, 42.", instruction) == PREFIX + pair + SUFFIX
    ids = encode_prompted(tokenizer, "what is it?", "A document, 42.", instruction, most=None).token_ids
    assert ids == [token for part in (PREFIX, pair, SUFFIX) for token in tokenizer.encode(part, add_special=False)]


def test_a_document_is_cut_before_what_follows_it() -> None:
    tokenizer = loaded("smollm2")
    words = {0: "one two three four", 1: "one two three", 3: "one"}
    whole = encode_prompted(tokenizer, "q", words[0], None, most=None).token_ids
    for less in words:
        found = encode_prompted(tokenizer, "q", words[0], None, most=len(whole) - less).token_ids
        assert len(found) == len(whole) - less
        kept = tokenizer.decode(found, skip_special=False)
        assert kept.endswith(SUFFIX)
        assert kept.removesuffix(SUFFIX) == text_of(tokenizer, "q", words[less], None).removesuffix(SUFFIX)


def test_a_template_of_the_checkpoint() -> None:
    """One that knows the roles is used, another is not."""
    spec = SPECS["smollm2"]()
    own = "{{ messages[0].content }}|{% for m in messages %}{% if m.role == 'query' %}Q {{ m.content }}{% endif %}"
    own += '{% if m.role == "document" %} D {{ m.content }}<|im_end|>{% endif %}{% endfor %}'
    backend = loaded("smollm2")._backend
    knowing = Tokenizer(backend, special=spec.special, templates={"default": own})
    assert text_of(knowing, "a", "b", "find") == "find|Q a D b<|im_end|>"
    chatting = Tokenizer(backend, special=spec.special, templates={"default": "{{ messages[0].content }}"})
    assert text_of(chatting, "a", "b", None).startswith(PREFIX)


def test_instructions_are_for_models_that_are_prompted() -> None:
    tokenizer = loaded("smollm2")
    made = scoring(tokenizer, ASKED, 512, [("a", "b")], most=None, instruction="find")
    assert "<Instruct>: find\n" in tokenizer.decode(made.inputs[0].token_ids, skip_special=False)
    with pytest.raises(RequestError, match="takes no instruction"):
        scoring(tokenizer, PoolingInfo(task="embed", size=4), 512, [("a", "b")], most=None, instruction="find")
