"""A tiny BERT in a worker process behind the real server: the openai client's vectors, and a worker that is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors

from slipstream.checkpoint import open_checkpoint, save_checkpoint
from slipstream.cluster.cargo import TOKENS
from slipstream.cluster.config import RestartPolicy
from slipstream.cluster.worker_client import WorkerClient
from slipstream.engine.config import EngineConfig
from slipstream.server import ServerConfig, build_app
from slipstream.spec.source import GenerationDefaults
from slipstream.text import Tokenizer, load_tokenizer
from tests.cluster.conftest import until
from tests.models.encoders import MINILM, RERANKERS, Encoded, random_checkpoint, renormalised

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
TEXTS = [" ".join(LETTERS[(i * 7 + k) % 26] * (1 + k % 3) for k in range(1 + i % 15)) for i in range(64)]


def write_model(folder: Path, config: dict[str, Any]) -> Path:
    """A folder as sentence-transformers saves it: mean pooling, vectors of length 1, a WordPiece tokenizer."""
    save_checkpoint(random_checkpoint(config).source, folder, config)
    pieces = [*SPECIAL, *LETTERS, *("##" + letter for letter in LETTERS)]
    backend = Backend(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.save(str(folder / "tokenizer.json"))
    types = "sentence_transformers.models."
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    (folder / "modules.json").write_text(
        json.dumps(
            [{"idx": i, "name": str(i), "path": paths[name], "type": types + name} for i, name in enumerate(paths)]
        )
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder


@asynccontextmanager
async def serving(folder: Path, steps: Path) -> AsyncIterator[tuple[openai.AsyncOpenAI, WorkerClient, Tokenizer]]:
    """The real server without a socket, over a real worker."""
    engine = EngineConfig(max_seqs=8, max_batched_tokens=64, compile_cache=str(steps), weight_cache="", cpu_threads=1)
    worker = WorkerClient(TOKENS, folder, engine, policy=RestartPolicy(delays=(0.0,)))
    spec = open_checkpoint(folder).tokenizer
    assert spec is not None
    tokenizer = load_tokenizer(spec)
    started: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
    app = build_app(worker, tokenizer, GenerationDefaults(), ServerConfig(), on_start=started.set_result)
    async with app.router.lifespan_context(app):
        assert await started is None
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), timeout=60)
        async with openai.AsyncOpenAI(
            base_url="http://slipstream/v1", api_key="none", max_retries=0, http_client=http
        ) as client:
            yield client, worker, tokenizer


async def embed(client: openai.AsyncOpenAI, texts: list[str]) -> np.ndarray:
    reply = await client.embeddings.create(model="model", input=texts)
    return np.asarray([one.embedding for one in reply.data])


async def test_vectors_survive_the_death_of_their_worker(tmp_path: Path) -> None:
    """16 clients with 4 texts each; the worker is killed twice, and every vector is that of an undisturbed run."""
    folder = write_model(tmp_path / "model", MINILM)
    async with serving(folder, tmp_path / "steps") as (client, worker, tokenizer):
        ids = [tokenizer.encode(text) for text in TEXTS]
        reply = await client.embeddings.create(model="model", input=TEXTS)
        assert reply.usage.prompt_tokens == sum(map(len, ids))
        first = np.asarray([one.embedding for one in reply.data])
        states, at = Encoded.of(open_checkpoint(folder)).states(ids[:12], sum(map(len, ids[:12]))), 0
        for text, vector in zip(ids[:12], first, strict=False):
            np.testing.assert_allclose(vector, renormalised(states[at : at + len(text)].mean(0)), atol=1e-5)
            at += len(text)

        async def many(part: int) -> np.ndarray:
            while worker.restarts < 2 or not worker.ready:
                found = await embed(client, TEXTS[part * 4 : part * 4 + 4])
                np.testing.assert_allclose(found, first[part * 4 : part * 4 + 4], atol=1e-6)
            return await embed(client, TEXTS[part * 4 : part * 4 + 4])

        running = [asyncio.create_task(many(part)) for part in range(16)]
        for kill in (1, 2):
            await asyncio.sleep(0.1)
            os.kill(worker.worker_pids[0], signal.SIGKILL)
            await until(lambda kill=kill: worker.restarts == kill and worker.ready, 60)
        after = np.concatenate(await asyncio.gather(*running))
        np.testing.assert_allclose(after, first, atol=1e-6)
        assert worker.replayed > 0
        [model] = (await client.models.list()).data
        assert model.model_extra is not None and model.model_extra["task"] == "embed"


async def test_a_reranker_tells_the_texts_apart(tmp_path: Path) -> None:
    """Both texts of a pair in one input, the second of another type."""
    config = {**RERANKERS["bert"], "vocab_size": 300, "max_position_embeddings": 32, "num_hidden_layers": 1}
    folder = write_model(tmp_path / "model", config)
    model = Encoded.of(open_checkpoint(folder))
    async with serving(folder, tmp_path / "steps") as (client, _, tokenizer):
        body = {"query": "a b", "documents": ["b a", "c d e", "z"]}
        reply: Any = await client.post("/rerank", body=body, cast_to=object)
    scores = [result["relevance_score"] for result in reply["results"]]
    assert scores == sorted(scores, reverse=True) and len(scores) == 3
    for result in reply["results"]:
        ids, second = tokenizer.encode_pair("a b", result["document"]["text"], most=None)
        assert second == 4
        assert abs(result["relevance_score"] - model.score(ids, second)) < 1e-5
