"""POST /v1/embeddings, in OpenAI's shapes."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import numpy as np
import orjson

from slipstream.api.pooling import ClassifyRequest, Embedding, EmbeddingReply, EmbeddingRequest, PoolingUsage
from slipstream.server.call import Call
from slipstream.server.front import Front, new_id
from slipstream.server.pooling import PoolingWork
from slipstream.server.prompts import check_ids, need_tokenizer, split
from slipstream.server.sampling import check_priority
from slipstream.text.pairs import Pooled
from slipstream.text.pooling import check_dimensions, check_length, finished, limit_of


def count(request: EmbeddingRequest | ClassifyRequest) -> int:
    """Inputs. Raises RequestError for an input of no known form."""
    return len(split(request.input, "input"))


async def prepare(front: Front, request: EmbeddingRequest, call: Call) -> PoolingWork:
    """The request, ready to run. Raises RequestError for what it asks for in vain."""
    info = front.client.info
    pooling = info.pooling
    assert pooling is not None, "the task was checked"
    check_priority(request.priority, info.policy)
    check_dimensions(request.dimensions, pooling)
    prompts = await encoded(front, request)
    normalize = pooling.normalize if request.normalize is None else request.normalize
    as_bytes = request.encoding_format == "base64"
    id = new_id("embd")

    def answer(vectors: Sequence[np.ndarray], usage: PoolingUsage) -> msgspec.Struct:
        made = (finished(vector, dimensions=request.dimensions, normalize=normalize) for vector in vectors)
        return EmbeddingReply(
            id=id,
            created=int(call.arrival_ns // 10**9),
            model=front.model,
            data=[Embedding(index=i, embedding=_written(one, as_bytes=as_bytes)) for i, one in enumerate(made)],
            usage=usage,
        )

    return PoolingWork(id, prompts, request.priority or 0, answer)


async def encoded(front: Front, request: EmbeddingRequest | ClassifyRequest) -> list[Pooled]:
    """The inputs' token ids. Raises RequestError for one that the model cannot take."""
    longest = longest_of(front)
    most = limit_of(request.truncate_prompt_tokens, longest)
    special = request.add_special_tokens is not False
    inputs = split(request.input, "input")

    def encode() -> list[list[int]]:
        return [
            need_tokenizer(front, "text").encode_cut(one, add_special=special, most=most)
            if isinstance(one, str)
            else one[:most]
            for one in inputs
        ]

    prompts = await front.in_thread(encode)
    for i, ids in enumerate(prompts):
        param = "input" if len(prompts) == 1 else f"input[{i}]"
        check_ids(ids, front.client.info.vocab_size, param)
        check_length(len(ids), longest, param)
    return [Pooled(ids) for ids in prompts]


def longest_of(front: Front) -> int:
    """Tokens that an input may have."""
    longest, given = front.client.info.max_model_len, front.config.max_prompt_tokens
    return longest if given is None else min(given, longest)


def _written(vector: np.ndarray, *, as_bytes: bool) -> list[float] | str:
    """As JSON will have it. orjson writes the shortest digits that give the same 32-bit float back."""
    if as_bytes:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: Any = msgspec.Raw(orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY))
    return cast(list[float], numbers)
