"""Pairs of texts in the prompt of a language model that answers whether they go together.

The prompt is the checkpoint's chat template where that knows the roles `query` and `document`, else Qwen3-Reranker's
(its model card, Qwen 2025). What is asked of the model is the message of role `system`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from slipstream.text.chat import ChatTemplates
from slipstream.text.tokenizer import Tokenizer

QWEN3_RERANKER: Final = """<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer \
can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: {{ messages | selectattr("role", "eq", "system") | map(attribute="content") | first | default("Given a web \
search query, retrieve relevant passages that answer the query") }}
<Query>: {{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}
<Document>: {{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}<|im_end|>
<|im_start|>assistant
<think>

</think>


"""


@dataclass(frozen=True)
class Pooled:
    """A text's token ids, or a pair's, whose second text begins at `second_from` (None: the model sees no border)."""

    token_ids: list[int]
    second_from: int | None = None


# Stands where the document is, so that it can be cut and what follows it stays.
_MARK = "\ue000the document\ue001"


def encode_prompted(
    tokenizer: Tokenizer, query: str, document: str, instruction: str | None, *, most: int | None
) -> Pooled:
    """The pair's prompt. Over `most` tokens the document is cut at its end, then what stands before it.

    Raises RequestError for a template that cannot be used.
    """
    templates = tokenizer.chat_templates
    if not templates.tells_apart("query", "document"):
        templates = ChatTemplates({"default": QWEN3_RERANKER}, {})
    messages = [{"role": "query", "content": query}, {"role": "document", "content": _MARK}]
    if instruction is not None:
        messages.insert(0, {"role": "system", "content": instruction})
    before, _, after = templates.render(messages).rpartition(_MARK)
    # Words may join across the border with the document, but not across that behind it, where a special token begins.
    ids, rest = tokenizer.encode_chat(before + document), tokenizer.encode_chat(after)
    return Pooled([*(ids if most is None else ids[: max(0, most - len(rest))]), *rest])
