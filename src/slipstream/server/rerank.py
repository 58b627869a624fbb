"""POST /v1/rerank (Jina's and Cohere's form) and /v1/score (vLLM's): how well texts go together."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from msgspec import UNSET

from slipstream.api.pooling import (
    PoolingUsage,
    RerankReply,
    RerankRequest,
    RerankResult,
    Score,
    ScoreReply,
    ScoreRequest,
    TextDocument,
)
from slipstream.errors import RequestError
from slipstream.server.call import Call
from slipstream.server.embeddings import longest_of
from slipstream.server.front import Front, new_id
from slipstream.server.pooling import PoolingWork
from slipstream.server.prompts import check_ids, need_tokenizer
from slipstream.server.sampling import check_priority
from slipstream.text.pooling import Scoring, limit_of, pairs, scoring


def count_documents(request: RerankRequest) -> int:
    """Pairs to be scored."""
    return len(request.documents)


async def prepare_rerank(front: Front, request: RerankRequest, call: Call) -> PoolingWork:
    """The request, ready to run. Raises RequestError for what it asks for in vain."""
    if not request.documents:
        raise RequestError("documents is empty: send at least one", param="documents", code="empty_prompt")
    if request.top_n is not None and request.top_n < 0:
        raise RequestError(f"top_n must not be negative, got {request.top_n}", param="top_n")
    texts = [one if isinstance(one, str) else one.text for one in request.documents]
    made = await _scoring(front, [(request.query, text) for text in texts], request)
    id = new_id("rerank")

    def answer(vectors: Sequence[np.ndarray], usage: PoolingUsage) -> msgspec.Struct:
        scores = made.scores(vectors)
        best = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: request.top_n or None]
        shown = request.return_documents is not False
        return RerankReply(
            id=id,
            model=front.model,
            results=[
                RerankResult(
                    index=i, relevance_score=scores[i], document=TextDocument(text=texts[i]) if shown else UNSET
                )
                for i in best
            ],
            usage=usage,
        )

    return PoolingWork(id, made.inputs, request.priority or 0, answer)


def count_pairs(request: ScoreRequest) -> int:
    """Pairs to be scored. Raises RequestError for lists that make none."""
    return len(pairs(request.text_1, request.text_2))


async def prepare_score(front: Front, request: ScoreRequest, call: Call) -> PoolingWork:
    """The request, ready to run. Raises RequestError for what it asks for in vain."""
    made = await _scoring(front, pairs(request.text_1, request.text_2), request)
    id = new_id("score")

    def answer(vectors: Sequence[np.ndarray], usage: PoolingUsage) -> msgspec.Struct:
        data = [Score(index=i, score=score) for i, score in enumerate(made.scores(vectors))]
        return ScoreReply(id=id, created=int(call.arrival_ns // 10**9), model=front.model, data=data, usage=usage)

    return PoolingWork(id, made.inputs, request.priority or 0, answer)


async def _scoring(front: Front, texts: Sequence[tuple[str, str]], request: RerankRequest | ScoreRequest) -> Scoring:
    info = front.client.info
    pooling = info.pooling
    assert pooling is not None, "the task was checked"
    check_priority(request.priority, info.policy)
    tokenizer, longest = need_tokenizer(front, "text"), longest_of(front)
    most = limit_of(request.truncate_prompt_tokens, longest)
    made = await front.in_thread(
        lambda: scoring(tokenizer, pooling, longest, texts, most=most, instruction=request.instruction)
    )
    for i, one in enumerate(made.inputs):
        check_ids(one.token_ids, info.vocab_size, f"text {i}")
    return made
