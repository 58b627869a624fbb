"""POST /v1/classify, in vLLM's shapes: the shares of a classifier's labels."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from slipstream.api.pooling import Classification, ClassifyReply, ClassifyRequest, PoolingUsage
from slipstream.server.call import Call
from slipstream.server.embeddings import encoded
from slipstream.server.front import Front, new_id
from slipstream.server.pooling import PoolingWork
from slipstream.server.sampling import check_priority


async def prepare(front: Front, request: ClassifyRequest, call: Call) -> PoolingWork:
    """The request, ready to run. Raises RequestError for what it asks for in vain."""
    info = front.client.info
    assert info.pooling is not None and info.pooling.labels is not None, "the task was checked"
    labels = info.pooling.labels
    check_priority(request.priority, info.policy)
    inputs = await encoded(front, request)
    id = new_id("classify")

    def answer(vectors: Sequence[np.ndarray], usage: PoolingUsage) -> msgspec.Struct:
        data = [
            Classification(
                index=i, label=labels[int(np.argmax(shares))], probs=shares.tolist(), num_classes=len(labels)
            )
            for i, shares in enumerate(vectors)
        ]
        return ClassifyReply(id=id, created=int(call.arrival_ns // 10**9), model=front.model, data=data, usage=usage)

    return PoolingWork(id, inputs, request.priority or 0, answer)
