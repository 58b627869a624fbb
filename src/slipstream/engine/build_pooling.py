"""From a checkpoint to an engine that makes vectors of texts, or scores of pairs of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import jax

from slipstream.api.engine import EngineInfo, PoolingInfo
from slipstream.checkpoint.loading import check, load
from slipstream.checkpoint.placement import Placement
from slipstream.checkpoint.progress import Progress, silent
from slipstream.checkpoint.quantized.rounded import RoundedSource
from slipstream.engine.blueprint import activations
from slipstream.engine.build import _one_at_a_time
from slipstream.engine.config import EngineConfig
from slipstream.engine.kernels import Chosen, choose_kernels
from slipstream.engine.loop import Engine
from slipstream.engine.memory import KVShape, device_limit, kv_dtype, most_kv_bytes, row_size
from slipstream.engine.origin import compile_facts
from slipstream.engine.pages import PagePool
from slipstream.engine.pooling import PoolingModel, pooling_model
from slipstream.engine.pooling_runner import PoolingRunner
from slipstream.engine.replicas import Replicas
from slipstream.engine.scheduler import Scheduler
from slipstream.engine.shapes import ShapePolicy
from slipstream.engine.step_cache import StepCache
from slipstream.errors import CheckpointError, ConfigError
from slipstream.hardware.allocator import give_back_freed_memory, keep_freed_memory
from slipstream.kernels.compiles import CompileCounter, store_of
from slipstream.kernels.native import library
from slipstream.models.llm.stack import within
from slipstream.parallel.fit import check_fit
from slipstream.parallel.mesh import make_mesh, replicas
from slipstream.parallel.rules import rules_of
from slipstream.parallel.spread import heads_of
from slipstream.quant.rounding import SCHEMES
from slipstream.spec.source import Answers, Checkpoint, Pooling
from slipstream.text import load_tokenizer


def build_pooling(checkpoint: Checkpoint, config: EngineConfig, progress: Progress = silent) -> Engine | Replicas:
    """An engine that can take requests for vectors, or for scores where the checkpoint is a reranker.

    `progress` gets the stages "load" and "compile". Raises as `build.build` does.
    """
    if config.answers is not None:
        checkpoint = answering(checkpoint, config.answers)
    model = pooling_model(checkpoint)
    # Before XLA starts, which looking for devices does. An encoder's attention is XLA's own, and worth its threads.
    library.use_threads(config.cpu_threads, native=model.cached and config.kernels in ("auto", "cpu"))
    compiles = CompileCounter()
    max_tokens = longest_text(config, model)
    config = settings_for(config, model, max_tokens)
    if model.cached:
        model = replace(model, config=within(model.config, max_tokens))
    groups = replicas(jax.local_devices(), config.tp, config.dp)
    if groups[0][0].platform == "cpu":
        keep_freed_memory()
    check_fit(model.plan, model.kv_heads, config.tp, rules_of(experts=config.ep, tokens=config.sp))
    if config.quantization is not None:
        model = replace(model, source=RoundedSource(model.source, model.plan, SCHEMES[config.quantization]))
    check(model.plan, model.source, allowed_unused=model.unread)
    chosen = choose_kernels(config, groups[0][0].platform, config.tp * config.dp)
    parts = _Parts(checkpoint, config, model, max_tokens, chosen)
    engines = [_engine(parts, devices, compiles, _one_at_a_time(progress)) for devices in groups]
    compiles.mark_ready()
    return engines[0] if len(engines) == 1 else Replicas(engines)


@dataclass(frozen=True)
class _Parts:
    """What all replicas have in common."""

    checkpoint: Checkpoint
    config: EngineConfig
    model: PoolingModel
    max_tokens: int
    chosen: Chosen


def _engine(parts: _Parts, devices: Sequence[jax.Device], compiles: CompileCounter, progress: Progress) -> Engine:
    """One replica on its devices."""
    config, model, chosen, device = parts.config, parts.model, parts.chosen, devices[0]
    count = config.tp * config.dp
    mesh = make_mesh(devices, model.kv_heads) if count > 1 else None
    rules = rules_of(experts=config.ep, tokens=config.sp)
    dtype = activations(config.dtype, device.platform)
    kv, page_size = None, parts.max_tokens + 1  # A text that is computed whole is a page.
    if model.cached:
        c, held = model.config, kv_dtype(config.kv_dtype, dtype, device.platform)
        page_size = chosen.page_size(config, held)
        sizes = (c.layers, c.kv_heads, row_size(c.head_dim, chosen.kernels, latent=model.latent), page_size)
        heads = None if mesh is None else heads_of(mesh, rules)
        kv = KVShape(*sizes, held, values=not model.latent, heads=heads)
    config = replace(config, page_size=page_size)
    # To the scheduler a vector is a reply of one token, for which there must be room.
    pages_each = -(-(parts.max_tokens + 1) // page_size)
    shapes = ShapePolicy(config.max_seqs, config.max_batched_tokens, pages_each)
    placement = Placement(device, dtype, chosen.native, config.cpu_precision, mesh, rules)
    abstract = placement.abstract(model.plan, model.source)
    steps = StepCache(store_of(config.compile_cache, "steps"), compile_facts(devices), devices)
    runner = PoolingRunner(model, abstract, kv, shapes, chosen, device, mesh, steps)
    limit = device_limit(device, config.memory_fraction, count)
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:  # reading weights and compiling need nothing of each other
        weights = pool.submit(_weights, model, placement, progress)
        budget, pages = runner.compile(
            limit=limit,
            most_kv_bytes=most_kv_bytes(device, count, limit),
            most_pages=config.max_seqs * pages_each,
            least_pages=1 if config.max_model_len is None else pages_each,
            kv_bytes=config.kv_bytes,
            progress=progress,
        )
        compile_seconds = time.monotonic() - started
        runner.weights = weights.result()
    runner.warm_up()
    if device.platform == "cpu":
        give_back_freed_memory()
    longest = min(parts.max_tokens + 1, pages * page_size)
    info = EngineInfo(
        model=str(parts.checkpoint.path.name),
        vocab_size=model.config.vocab_size,
        max_model_len=longest - 1,
        max_seqs=config.max_seqs,
        max_batched_tokens=config.max_batched_tokens,
        page_size=page_size,
        num_pages=pages,
        kv_bytes=0 if kv is None else pages * kv.bytes_per_page,
        weight_bytes=budget.weights,
        temporary_bytes=budget.temporaries,
        dtype=str(dtype),
        kv_dtype="none" if kv is None else str(kv.dtype),
        platform=device.platform,
        device=device.device_kind,
        num_devices=len(devices),
        compile_seconds=compile_seconds,
        num_shapes=len(shapes.mixed),
        policy=config.policy,
        prefix_caching=config.prefix_caching,
        memory_fraction=config.memory_fraction,
        pooling=_described(parts.checkpoint, model),
    )
    scheduler = Scheduler(config, PagePool(pages), shapes, longest, whole_prompts=model.whole)
    return Engine(scheduler, runner, info, compiles)


def _described(checkpoint: Checkpoint, model: PoolingModel) -> PoolingInfo:
    answers = model.pooling.answers
    return PoolingInfo(
        task=model.task,
        size=model.size,
        normalize=model.pooling.normalize,
        dimensions=matryoshka(checkpoint.config, model.size) if model.task == "embed" else None,
        labels=model.labels,
        prompted=answers is not None,
        instruction=None if answers is None else answers.instruction,
    )


def answering(checkpoint: Checkpoint, words: str) -> Checkpoint:
    """The checkpoint of a language model that scores pairs by the first of two `words` over the second.

    Raises ConfigError for what is not two words of one token each.
    """
    given = words.split(",")
    if len(given) != 2 or checkpoint.tokenizer is None:
        raise ConfigError(
            f"--answers must be two words such as yes,no, of a checkpoint with a tokenizer, got {words!r}"
        )
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    tokens = [tokenizer.encode(word, add_special=False) for word in given]
    for word, ids in zip(given, tokens, strict=True):
        if len(ids) != 1:
            raise ConfigError(f"--answers: {word!r} is {len(ids)} tokens of this model, and must be one")
    return replace(checkpoint, pooling=Pooling("last", normalize=False, answers=Answers(tokens[0][0], tokens[1][0])))


def matryoshka(config: Mapping[str, Any], size: int) -> tuple[int, ...] | None:
    """The sizes that vectors may be cut to, as config.json says under vLLM's keys; empty: any; None: none.

    Raises CheckpointError for sizes that no vector of `size` can have.
    """
    sizes = config.get("matryoshka_dimensions")
    if sizes is None:
        return () if config.get("is_matryoshka") is True else None
    if not isinstance(sizes, list) or not all(isinstance(n, int) and 0 < n <= size for n in sizes):
        raise CheckpointError(f"config.json: matryoshka_dimensions must be sizes from 1 to {size}, got {sizes!r}")
    return tuple(sizes)


def settings_for(config: EngineConfig, model: PoolingModel, max_tokens: int) -> EngineConfig:
    """The settings for this model. A text that is computed whole must fit a step, and nothing of it can be reused."""
    if not model.whole:
        return config
    return replace(config, max_batched_tokens=max(config.max_batched_tokens, max_tokens), prefix_caching=False)


def _weights(model: PoolingModel, placement: Placement, progress: Progress) -> Any:
    return load(
        model.plan,
        model.source,
        placement.place,
        place_blocks=placement.place_blocks,
        place_parts=placement.place_parts,
        progress=progress,
        allowed_unused=model.unread,
    )


def longest_text(config: EngineConfig, model: PoolingModel) -> int:
    """The longest text: what was asked for, or what the model was trained with.

    Raises ConfigError for more than the model was made for.
    """
    limit: int = model.config.max_position
    if config.max_model_len is None:
        return min(limit, model.pooling.max_tokens or limit)
    if config.max_model_len > limit:
        raise ConfigError(
            f"max_model_len {config.max_model_len} is more than the {limit} tokens that the model was made for: lower "
            f"--max-model-len to {limit} or less"
        )
    return config.max_model_len
