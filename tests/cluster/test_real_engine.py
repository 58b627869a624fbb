"""The kill test with the real engine: a small random model, compiled, in a real worker."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from slipstream.api.engine import EngineRequest
from slipstream.api.sampling import TokenSampling
from slipstream.checkpoint import RandomSource, save_checkpoint
from slipstream.cluster.cargo import TOKENS
from slipstream.cluster.config import RestartPolicy
from slipstream.cluster.worker_client import WorkerClient
from slipstream.engine.config import EngineConfig
from slipstream.errors import CheckpointError
from slipstream.models.registry import family
from tests.cluster.conftest import outputs_of, tokens_of, until

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}


def request_of(number: int, max_tokens: int) -> EngineRequest:
    sampling = TokenSampling(
        seed=number,
        max_tokens=max_tokens,
        temperature=1.0 if number % 2 else 0.0,
        presence_penalty=0.5 if number % 3 else 0.0,
        top_k=20 if number % 5 else 0,
    )
    return EngineRequest(
        id=f"r{number}", prompt_token_ids=[(number * 7 + i) % 97 for i in range(3 + number)], sampling=sampling
    )


async def test_32_streams_of_the_real_engine_survive_two_kills(tmp_path: Path) -> None:
    chosen = family(LLAMA)
    save_checkpoint(RandomSource(chosen.plan(chosen.from_hf(LLAMA)), 1), tmp_path / "model", LLAMA)
    config = EngineConfig(
        max_seqs=32, max_batched_tokens=32, max_model_len=512, kv_bytes=2**23, compile_cache=str(tmp_path / "compiled")
    )
    client = WorkerClient(TOKENS, tmp_path / "model", config, policy=RestartPolicy(delays=(0.0,)))
    await client.start()
    try:
        assert client.info.vocab_size == 97
        requests = [request_of(n, 440) for n in range(32)]  # long enough to be cut off twice by a fast engine
        undisturbed = await asyncio.gather(*(outputs_of(client, request) for request in requests))
        received: list[list[int]] = [[] for _ in requests]

        async def read(request: EngineRequest, tokens: list[int]) -> None:
            async for output in client.generate(request):
                tokens += output.token_ids

        readers = [asyncio.create_task(read(*each)) for each in zip(requests, received, strict=True)]
        for least in (600, 1800):
            await until(lambda least=least: sum(map(len, received)) > least, 60)
            os.kill(client.worker_pids[0], signal.SIGKILL)
            await until(lambda: not client.ready)
            await until(lambda: client.ready, 60)
        await asyncio.gather(*readers)
        assert client.restarts == 2 and client.replayed > 32
        for request, expected, got in zip(requests, undisturbed, received, strict=True):
            assert len(got) == 440
            assert got == tokens_of(expected), request.id
        assert client.stats.compiles_after_ready == 0
        stream = client.generate(request_of(1, 200))
        await anext(stream)
        await stream.aclose()
        await until(lambda: client.stats.running == 0 and client.stats.pages_used == 0)
    finally:
        await client.close()


async def test_a_checkpoint_that_cannot_be_read(tmp_path: Path) -> None:
    client = WorkerClient(TOKENS, tmp_path, EngineConfig())
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        await client.start()
    assert not client.ready
