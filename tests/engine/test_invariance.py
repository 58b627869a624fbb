"""A request's logits are the same bits whatever shares its steps, however its prompt is cut, on any number of threads.

Every logit counts: the rank that goes with a log probability is replaced by a checksum of the bits of all logits that
it was taken from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slipstream.api.engine import EngineRequest, TokenOutput
from slipstream.checkpoint import open_checkpoint, resolve
from slipstream.engine import step
from slipstream.engine.loop import Engine
from slipstream.engine.memory import KVShape
from slipstream.engine.sampler import Logprobs, logprobs_of
from slipstream.kernels.native import library
from slipstream.spec.source import Checkpoint
from tests.engine import quantized, tiny

pytestmark = pytest.mark.skipif(library.reason() is not None, reason="the native kernels were not built here")

REPLY = 10
CRAMPED = 96  # tokens: the context of an engine that has room for one sequence of this length
LENGTHS = (1, 3, 17, 40, 70, 5, 33, 16)

LLAMA: dict[str, Any] = tiny.CONFIG | {
    "hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_hidden_layers": 3
}  # fmt: skip
GEMMA: dict[str, Any] = {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "vocab_size": 211,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "sliding_window": 19,
    "query_pre_attn_scalar": 32,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 5.0,
}
MOE: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "vocab_size": 211,
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "norm_topk_prob": True,
}


@dataclass(frozen=True)
class Case:
    """A model, how its matrices are stored, and how it is served. Pages of 4 tokens cannot be laid out by head."""

    config: dict[str, Any]
    kinds: tuple[str, ...]
    cpu_precision: str
    kv_dtype: str
    page_size: int

    def checkpoint(self) -> Checkpoint:
        return quantized.checkpoint(self.config, kinds=self.kinds, jitter=0.3)

    def engine(self, **settings: Any) -> Engine:
        served = {"cpu_precision": self.cpu_precision, "kv_dtype": self.kv_dtype, "page_size": self.page_size}
        return tiny.engine(self.checkpoint(), kernels="cpu", **served, **settings)

    @property
    def page_bytes(self) -> int:
        sizes = (self.config[name] for name in ("num_hidden_layers", "num_key_value_heads", "head_dim"))
        return KVShape(*sizes, self.page_size, np.dtype(jnp.dtype(self.kv_dtype))).bytes_per_page


CASES = {
    "llama-exact": Case(LLAMA, ("Q8_0",), "exact", "float32", 16),
    "llama-fast": Case(LLAMA, ("Q4_0", "Q8_0"), "fast", "int8", 4),
    "gemma-exact": Case(GEMMA, ("Q5_0", "Q8_0"), "exact", "float16", 16),
    "gemma-fast": Case(GEMMA, ("Q4_1",), "fast", "bfloat16", 16),
    "moe-exact": Case(MOE, ("Q8_0",), "exact", "float32", 16),
    "gemma-int8": Case(GEMMA, ("Q5_1",), "exact", "int8", 16),
}


def marked(logits: jax.Array, chosen: jax.Array) -> Logprobs:
    """`logprobs_of` with a checksum in place of the rank. The multipliers are odd: no change of one logit is lost."""
    bits = jax.lax.bitcast_convert_type(logits, jnp.uint32)
    weights = 2 * jnp.arange(logits.shape[1], dtype=jnp.uint32) + 1
    checksum = jnp.sum(bits * weights * jnp.uint32(0x9E3779B1), axis=1, dtype=jnp.uint32)
    return replace(logprobs_of(logits, chosen), rank=jax.lax.bitcast_convert_type(checksum, jnp.int32))


@pytest.fixture(scope="module", autouse=True)
def checksums() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "logprobs_of", marked)
        yield


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    yield
    use_threads(0)


def use_threads(count: int) -> None:
    """0: the default."""
    found = library.library()
    assert found is not None
    found.slipstream_set_threads(count)


@dataclass(frozen=True)
class Seen:
    """Tokens, and the checksum of the logits before each: of the reply, and of the prompt (its first has none)."""

    tokens: list[int]
    reply: list[int]
    prompt: list[int]
    cached: int


def seen(outputs: Sequence[TokenOutput]) -> Seen:
    reply = [at.rank for output in outputs for at in output.logprobs or []]
    return Seen(
        tiny.tokens(outputs), reply, [at.rank for at in outputs[0].prompt_logprobs or []], outputs[0].cached_tokens
    )


def request(name: str, prompt: Sequence[int], *, prompt_too: bool = True) -> EngineRequest:
    """Sampled, so that replies differ and go on."""
    wants = {"temperature": 1.0, "seed": len(prompt), "max_tokens": REPLY, "logprobs": 0}
    return tiny.request(name, prompt, **wants, **({"prompt_logprobs": 0} if prompt_too else {}))


def run(engine: Engine, requests: Sequence[EngineRequest], *, late: Sequence[EngineRequest] = ()) -> dict[str, Seen]:
    """`late` requests come when the others have begun to reply."""
    outputs: dict[str, list[TokenOutput]] = {}
    for one in requests:
        engine.add(one)
    waiting = list(late)
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.id, []).append(output)
        if waiting and len(outputs) == len(requests):
            engine.add(waiting.pop())
    return {name: seen(each) for name, each in outputs.items()}


def prompts(vocabulary: int) -> dict[str, list[int]]:
    rng = np.random.default_rng(8)
    return {f"of {n}": rng.integers(0, vocabulary, n).tolist() for n in LENGTHS}


def assert_invariant(engine: Engine, texts: dict[str, list[int]]) -> dict[str, Seen]:
    """Alone on one thread is what all else is compared with."""
    use_threads(1)
    alone = {name: run(engine, [request(name, text)])[name] for name, text in texts.items()}
    for name, one in alone.items():
        assert len(one.tokens) == len(one.reply) == REPLY
        assert len(one.prompt) == len(texts[name]) - 1
    # A token that repeats the first one leaves the logits as they were: what attention mixes is then twice the same.
    assert len({mark for one in alone.values() for mark in one.reply}) >= 0.9 * REPLY * len(texts)

    requests = [request(name, text) for name, text in texts.items()]
    assert run(engine, requests) == alone, "together, on one thread"
    use_threads(2)
    assert run(engine, requests[::-1]) == alone, "in another order, on two threads"
    *others, longest = sorted(requests, key=lambda one: len(one.prompt_token_ids))
    beside = run(engine, others[:3], late=[longest])
    assert beside == {name: alone[name] for name in beside}, "a long prompt comes while others decode"
    assert longest.id in beside
    return alone


def assert_cached_is_the_same(engine: Engine, texts: dict[str, list[int]], alone: dict[str, Seen]) -> None:
    """Replies to prompts whose keys and values lie in the prefix cache, which a wish for their logits would pass by."""
    again = run(engine, [request(name, text, prompt_too=False) for name, text in texts.items()])
    assert max(one.cached for one in again.values()) >= 32
    for name, one in again.items():
        assert (one.tokens, one.reply) == (alone[name].tokens, alone[name].reply), f"{one.cached} tokens cached"


@pytest.mark.parametrize("name", CASES)
def test_bits_are_equal_in_any_company(name: str) -> None:
    """In an engine whose steps hold a whole prompt, and in one that cuts prompts up and runs out of pages."""
    case = CASES[name]
    texts = prompts(case.config["vocab_size"])
    roomy = case.engine(max_seqs=8, max_batched_tokens=128)
    alone = assert_invariant(roomy, texts)
    assert_cached_is_the_same(roomy, texts, alone)
    room = (-(-CRAMPED // case.page_size) + 1) * case.page_bytes
    cramped = case.engine(max_seqs=4, max_batched_tokens=24, kv_bytes=room, max_model_len=CRAMPED)
    assert assert_invariant(cramped, texts) == alone
    assert cramped.stats().preemptions > 0


@pytest.mark.parametrize("cpu_precision", ["exact", "fast"])
def test_bits_of_a_real_model_are_equal(cpu_precision: str) -> None:
    """SmolLM2-135M: 30 layers, a head of 49,152 rows, blocks of two kinds."""
    served = {"max_seqs": 8, "max_batched_tokens": 128, "page_size": 16, "max_model_len": 128, "kv_bytes": 2**25}
    source = open_checkpoint(resolve("smollm2-135m"))
    engine = tiny.engine(source, kernels="cpu", cpu_precision=cpu_precision, **served)
    texts = {name: text for name, text in prompts(engine.info.vocab_size).items() if len(text) in (1, 17, 40, 70)}
    assert_cached_is_the_same(engine, texts, assert_invariant(engine, texts))
