"""The requests and replies of vectors and scores: OpenAI's embeddings, Jina's and Cohere's rerank, vLLM's score."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType


class PoolingFields(msgspec.Struct, kw_only=True):
    """The fields that these requests share. Abstract: requests are one of its children."""

    model: str | None = None
    truncate_prompt_tokens: int | None = None
    priority: int | None = None


class EmbeddingRequest(PoolingFields, kw_only=True):
    """POST /v1/embeddings.

    Parameters
    ----------
    input
        A text, a list of texts, a list of token ids, or a list of such lists.
    model
        The served model's name; absent: the served model.
    encoding_format
        float: numbers; base64: their 32-bit floats in little-endian order.
    dimensions
        Cut the vectors to so many numbers, where the model was trained for that (Matryoshka).
    truncate_prompt_tokens
        Cut longer inputs to their first so many tokens, the tokenizer's own at the end kept; -1: to the longest that
        the model takes. Absent: a longer input is refused.
    add_special_tokens
        Let the tokenizer add its special tokens (default true).
    normalize
        Whether vectors have length 1. Absent: as the model's own files say.
    priority
        Lower is served sooner, where the engine's policy is priority.
    """

    input: str | list[Any]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    add_special_tokens: bool | None = None
    normalize: bool | None = None


class TextDocument(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A document as an object."""

    text: str


class RerankRequest(PoolingFields, kw_only=True):
    """POST /v1/rerank.

    Parameters
    ----------
    query
        What is looked for.
    documents
        Texts, or objects with a text each.
    model
        The served model's name; absent: the served model.
    top_n
        Send the best so many alone; 0 or absent: all.
    return_documents
        Send the documents' texts back (default true).
    truncate_prompt_tokens
        Cut a query with its document to so many tokens, at the document's end; -1: to the longest that the model takes.
    instruction
        What makes a document relevant, for a model that is asked in words (Qwen3-Reranker). Absent: its own.
    priority
        Lower is served sooner, where the engine's policy is priority.
    """

    query: str
    documents: list[str | TextDocument]
    instruction: str | None = None
    top_n: int | None = None
    return_documents: bool | None = None


class ScoreRequest(PoolingFields, kw_only=True):
    """POST /v1/score.

    Parameters
    ----------
    text_1
        A text, or a list of texts.
    text_2
        As many texts, or with one text_1 any number.
    model
        The served model's name; absent: the served model.
    truncate_prompt_tokens, instruction
        As for a rerank.
    priority
        Lower is served sooner, where the engine's policy is priority.
    """

    text_1: str | list[str]
    text_2: str | list[str]
    instruction: str | None = None


class ClassifyRequest(PoolingFields, kw_only=True):
    """POST /v1/classify.

    Parameters
    ----------
    input
        A text, a list of texts, a list of token ids, or a list of such lists.
    model
        The served model's name; absent: the served model.
    truncate_prompt_tokens
        As for embeddings.
    add_special_tokens
        Let the tokenizer add its special tokens (default true).
    priority
        Lower is served sooner, where the engine's policy is priority.
    """

    input: str | list[Any]
    add_special_tokens: bool | None = None


class PoolingUsage(msgspec.Struct, kw_only=True):
    """Token counts."""

    prompt_tokens: int
    total_tokens: int


class Embedding(msgspec.Struct, kw_only=True):
    """The vector of one input."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingReply(msgspec.Struct, kw_only=True):
    """The answer of /v1/embeddings."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Embedding]
    usage: PoolingUsage


class RerankResult(msgspec.Struct, kw_only=True):
    """A document's place among the others: `index` counts in the order in which they were sent."""

    index: int
    relevance_score: float
    document: TextDocument | UnsetType = UNSET


class RerankReply(msgspec.Struct, kw_only=True):
    """The answer of /v1/rerank: the best first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: PoolingUsage


class Score(msgspec.Struct, kw_only=True):
    """The score of one pair."""

    object: Literal["score"] = "score"
    index: int
    score: float


class ScoreReply(msgspec.Struct, kw_only=True):
    """The answer of /v1/score."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Score]
    usage: PoolingUsage


class Classification(msgspec.Struct, kw_only=True):
    """The likeliest label of one input, and the share of each label in the order of config.json's id2label."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class ClassifyReply(msgspec.Struct, kw_only=True):
    """The answer of /v1/classify."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Classification]
    usage: PoolingUsage
