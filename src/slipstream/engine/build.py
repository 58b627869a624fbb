"""From a checkpoint to a ready engine: weights on the device, memory sized, every shape compiled and run once."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import jax

from slipstream.api.engine import EngineInfo
from slipstream.checkpoint.fingerprint import fingerprint
from slipstream.checkpoint.loading import check, load
from slipstream.checkpoint.progress import Progress, silent
from slipstream.checkpoint.quantized.rounded import RoundedSource
from slipstream.engine.blueprint import Blueprint
from slipstream.engine.config import EngineConfig
from slipstream.engine.kernels import Chosen, choose_kernels
from slipstream.engine.loop import Engine
from slipstream.engine.memory import device_limit, most_kv_bytes
from slipstream.engine.origin import compile_facts, packing_facts
from slipstream.engine.pages import PagePool
from slipstream.engine.placement import Placement
from slipstream.engine.replicas import Replicas
from slipstream.engine.runner import JaxRunner
from slipstream.engine.scheduler import Scheduler
from slipstream.engine.step_cache import StepCache
from slipstream.engine.weight_cache import WeightCache
from slipstream.errors import ConfigError
from slipstream.hardware.allocator import give_back_freed_memory, keep_freed_memory
from slipstream.kernels.compiles import CompileCounter, store_of
from slipstream.kernels.native import library
from slipstream.kernels.packed import any_packed
from slipstream.models.llm.stack import within
from slipstream.models.registry import Family, ModelConfig, family
from slipstream.parallel.fit import check_fit
from slipstream.parallel.mesh import replicas
from slipstream.parallel.rules import rules_of
from slipstream.quant.rounding import SCHEMES
from slipstream.spec.source import Checkpoint


def build(checkpoint: Checkpoint, config: EngineConfig, progress: Progress = silent) -> Engine | Replicas:
    """An engine that can take requests. `progress` gets the stages "load" (weights) and "compile" (shapes).

    Raises UnsupportedModel, CheckpointError, ConfigError or OutOfMemory, before anything large is read where possible.
    """
    # Before XLA starts, which looking for devices does.
    library.use_threads(config.cpu_threads, native=config.kernels in ("auto", "cpu"))
    compiles = CompileCounter()
    members = family(checkpoint.config)
    model: ModelConfig = members.from_hf(checkpoint.config)
    max_len = _max_model_len(config, model)
    model = within(model, max_len)
    groups = replicas(jax.local_devices(), config.tp, config.dp)
    if groups[0][0].platform == "cpu":
        keep_freed_memory()
    plan = members.plan(model)
    check_fit(plan, model.kv_heads, config.tp, rules_of(experts=config.ep, tokens=config.sp))
    if config.quantization is not None:
        rounded = RoundedSource(checkpoint.source, plan, SCHEMES[config.quantization])
        checkpoint = replace(checkpoint, source=rounded)
    check(plan, checkpoint.source, allowed_unused=members.unread)
    chosen = choose_kernels(config, groups[0][0].platform, config.tp * config.dp)
    parts = _Parts(checkpoint, config, members, model, plan, max_len, chosen)
    engines = [_engine(parts, devices, compiles, _one_at_a_time(progress)) for devices in groups]
    compiles.mark_ready()
    return engines[0] if len(engines) == 1 else Replicas(engines)


@dataclass(frozen=True)
class _Parts:
    """What all replicas have in common."""

    checkpoint: Checkpoint
    config: EngineConfig
    family: Family
    model: ModelConfig
    plan: Any
    max_len: int
    chosen: Chosen


def _engine(parts: _Parts, devices: Sequence[jax.Device], compiles: CompileCounter, progress: Progress) -> Engine:
    """One replica on its devices."""
    device = devices[0]
    blueprint = Blueprint.of(parts.family, parts.model, parts.config, parts.max_len, devices, parts.chosen)
    lowering, shapes, placement = blueprint.lowering, blueprint.shapes, blueprint.placement
    kv, count = lowering.kv, parts.config.tp * parts.config.dp
    config = replace(parts.config, page_size=kv.page_size)
    abstract = placement.abstract(parts.plan, parts.checkpoint.source)
    steps = StepCache(store_of(config.compile_cache, "steps"), compile_facts(devices), devices)
    runner = JaxRunner(lowering, abstract, shapes, steps)
    limit = device_limit(device, config.memory_fraction, count)
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:  # reading weights and compiling need nothing of each other
        weights = pool.submit(_weights, parts, placement, abstract, progress)
        budget, pages = runner.compile(
            limit=limit,
            most_kv_bytes=most_kv_bytes(device, count, limit),
            most_pages=config.max_seqs * lowering.pages_per_row,
            least_pages=1 if config.max_model_len is None else lowering.pages_per_row,
            kv_bytes=config.kv_bytes,
            progress=progress,
        )
        compile_seconds = time.monotonic() - started
    runner.start(weights.result())
    if device.platform == "cpu":
        give_back_freed_memory()
    max_len = min(parts.max_len, pages * kv.page_size)
    info = EngineInfo(
        model=str(parts.checkpoint.path.name),
        vocab_size=parts.model.vocab_size,
        max_model_len=max_len,
        max_seqs=config.max_seqs,
        max_batched_tokens=config.max_batched_tokens,
        page_size=kv.page_size,
        num_pages=pages,
        kv_bytes=pages * kv.bytes_per_page,
        weight_bytes=budget.weights,
        temporary_bytes=budget.temporaries,
        dtype=str(blueprint.dtype),
        kv_dtype=str(kv.dtype),
        platform=device.platform,
        device=device.device_kind,
        num_devices=len(devices),
        compile_seconds=compile_seconds,
        num_shapes=len(shapes.all()),
        policy=config.policy,
        prefix_caching=config.prefix_caching,
        memory_fraction=config.memory_fraction,
    )
    return Engine(Scheduler(config, PagePool(pages), shapes, max_len), runner, info, compiles)


def _weights(parts: _Parts, placement: Placement, abstract: Any, progress: Progress) -> Any:
    """The weights on the device: as an earlier start packed them, or read and packed now."""
    files = fingerprint(parts.checkpoint) if any_packed(abstract) else None
    store = store_of(parts.config.weight_cache, "weights")
    cache = None if files is None or store is None else WeightCache(store, files, packing_facts())
    weights = None if cache is None else cache.read(abstract, placement.device)
    if weights is not None:
        progress("load weights", 1, 1)
        return weights
    weights = load(
        parts.plan,
        parts.checkpoint.source,
        placement.place,
        place_blocks=placement.place_blocks,
        place_parts=placement.place_parts,
        progress=progress,
        allowed_unused=parts.family.unread,
    )
    if cache is not None:
        cache.keep(abstract, weights)
    return weights


def _max_model_len(config: EngineConfig, model: ModelConfig) -> int:
    """The context asked for, or the model's own. Raises ConfigError for more than the model was made for."""
    if config.max_model_len is None:
        return model.max_position
    if config.max_model_len > model.max_position:
        raise ConfigError(
            f"max_model_len {config.max_model_len} is more than the {model.max_position} tokens that the model was "
            f"made for: lower --max-model-len to {model.max_position} or less"
        )
    return config.max_model_len


def _one_at_a_time(progress: Progress) -> Progress:
    """`progress` for calls from several threads."""
    lock = threading.Lock()

    def report(stage: str, done: int, total: int | None) -> None:
        with lock:
            progress(stage, done, total)

    return report
