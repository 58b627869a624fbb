"""A random llama small enough to check whole replies of, and the reply that it must give: one full forward a token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slipstream.api.engine import EngineRequest, TokenOutput
from slipstream.api.sampling import TokenSampling
from slipstream.checkpoint import RandomSource, load
from slipstream.engine.build import build
from slipstream.engine.config import EngineConfig
from slipstream.engine.loop import Engine
from slipstream.kernels.ragged import KVCache, Step
from slipstream.models.registry import Family, family
from slipstream.spec.source import Checkpoint, GenerationDefaults

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 211,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
LONGEST = 160  # of `reference`: one compiled shape serves all


@cache
def model() -> tuple[Family, Any]:
    """The family and its config."""
    row = family(CONFIG)
    return row, row.from_hf(CONFIG)


def checkpoint() -> Checkpoint:
    """A checkpoint of random weights, the same each time."""
    return checkpoint_of(CONFIG)


def checkpoint_of(config: dict[str, Any]) -> Checkpoint:
    """One of another config."""
    row = family(config)
    source = RandomSource(row.plan(row.from_hf(config)), seed=4)
    return Checkpoint(Path("tiny"), config, source, None, GenerationDefaults())


def engine(source: Checkpoint | None = None, *, exchanges: bool = False, **settings: Any) -> Engine:
    """A small engine: 4 sequences, 32 tokens a step, pages of 4 tokens in float32, the reference kernels."""
    defaults: dict[str, Any] = {
        "max_seqs": 4, "max_batched_tokens": 32, "page_size": 4, "compile_cache": "",
        "kernels": "reference", "kv_dtype": "float32"
    }  # fmt: skip
    return build(source or checkpoint(), EngineConfig(**(defaults | settings)), exchanges=exchanges)


def request(name: str, prompt: Sequence[int], **sampling: Any) -> EngineRequest:
    """A request, greedy unless told otherwise."""
    fields = {"temperature": 0.0, "max_tokens": 8} | sampling
    return EngineRequest(id=name, prompt_token_ids=list(prompt), sampling=TokenSampling(**fields))


def run(engine: Engine, requests: Iterable[EngineRequest] = ()) -> dict[str, list[TokenOutput]]:
    """Add requests and step until nothing is left; all outputs by id."""
    for one in requests:
        engine.add(one)
    outputs: dict[str, list[TokenOutput]] = {}
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.id, []).append(output)
    return outputs


def tokens(outputs: Sequence[TokenOutput]) -> list[int]:
    """The tokens of one reply."""
    return [token for output in outputs for token in output.token_ids]


@cache
def _full_forward() -> Any:
    row, c = model()
    weights = load(row.plan(c), checkpoint().source, lambda _param, _path, array: jnp.asarray(array))

    def logits(ids: jax.Array, length: jax.Array) -> jax.Array:
        step = Step.of(
            jnp.stack([jnp.int32(0), length]), length[None], jnp.arange(LONGEST // 16, dtype=jnp.int32)[None], LONGEST
        )
        empty = KVCache.zeros(c.layers, LONGEST // 16, 16, c.kv_heads, c.head_dim, jnp.dtype(jnp.float32))
        x, _ = row.forward(weights, c, ids, step, empty)
        return row.unembed(weights, c, x)

    return jax.jit(logits)


def full_logits(ids: Sequence[int]) -> np.ndarray:
    """Logits [len(ids), v] by one forward over the whole sequence: no pages shared, no chunks, no batch."""
    padded = np.zeros(LONGEST, np.int32)
    padded[: len(ids)] = ids
    return np.asarray(_full_forward()(padded, np.int32(len(ids))))[: len(ids)]


def greedy(prompt: Sequence[int], count: int) -> list[int]:
    """The greedy reply."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(full_logits(ids)[-1].argmax()))
    return ids[len(prompt) :]
