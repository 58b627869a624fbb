"""From a checkpoint to a ready engine: weights on the device, memory sized, every shape compiled and run once."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import jax

from slipstream.api.engine import EngineInfo
from slipstream.checkpoint.fingerprint import fingerprint
from slipstream.checkpoint.loading import check, load
from slipstream.checkpoint.placement import Placement
from slipstream.checkpoint.progress import Progress, silent
from slipstream.checkpoint.quantized.rounded import RoundedSource
from slipstream.engine.blueprint import Blueprint
from slipstream.engine.config import EngineConfig
from slipstream.engine.exchange import STAGED, Exchange
from slipstream.engine.group import ALONE, Group, devices_for
from slipstream.engine.kernels import Chosen, choose_kernels
from slipstream.engine.loop import STEPS_IN_FLIGHT, Engine
from slipstream.engine.memory import Budget, device_limit, gib, most_kv_bytes
from slipstream.engine.origin import compile_facts, packing_facts
from slipstream.engine.page_io import PageIO
from slipstream.engine.pages import PagePool
from slipstream.engine.programs import Programs
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
from slipstream.parallel.rules import rules_of
from slipstream.quant.rounding import SCHEMES
from slipstream.spec.source import Checkpoint

logger = logging.getLogger(__name__)


def build(
    checkpoint: Checkpoint,
    config: EngineConfig,
    progress: Progress = silent,
    group: Group = ALONE,
    *,
    exchanges: bool = False,
) -> Engine | Replicas:
    """An engine that can take requests. `progress` gets the stages "load" (weights) and "compile" (shapes).

    `group`: the processes whose devices it is on; this one leads. Their followers call `follow`.
    `exchanges`: it has an `Exchange`; a single replica of one process with a prefix cache can.

    Raises UnsupportedModel, CheckpointError, ConfigError or OutOfMemory, before anything large is read where possible.
    """
    if exchanges and (config.dp > 1 or group.size > 1 or not config.prefix_caching):
        raise ConfigError(
            "KV pages move between workers of one process and one replica that cache prefixes: leave --dp, --nnodes "
            "and --no-prefix-caching out"
        )
    compiles = CompileCounter()
    parts, groups = _parts(checkpoint, config, group, exchanges=exchanges)
    engines = [_engine(parts, devices, compiles, _one_at_a_time(progress)) for devices in groups]
    compiles.mark_ready()
    return engines[0] if len(engines) == 1 else Replicas(engines)


def follow(checkpoint: Checkpoint, config: EngineConfig, group: Group, progress: Progress = silent) -> None:
    """Run what the leader's engine runs, on this process's devices, until the group ends. Raises what `build` does."""
    parts, [devices] = _parts(checkpoint, config, group)
    programs = _ready(parts, devices, _one_at_a_time(progress)).programs
    begun: deque[Any] = deque()
    for call in group.calls():
        begun.append(programs.repeat(call))
        if len(begun) > STEPS_IN_FLIGHT:  # Nobody reads the results; this is where a step's failure is noticed.
            jax.block_until_ready(begun.popleft())


def _parts(
    checkpoint: Checkpoint, config: EngineConfig, group: Group, *, exchanges: bool = False
) -> tuple[_Parts, list[list[jax.Device]]]:
    """What can be decided before anything large is read, and each replica's devices."""
    # Before XLA starts, which looking for devices does.
    library.use_threads(config.cpu_threads, native=config.kernels in ("auto", "cpu"))
    members = family(checkpoint.config)
    model: ModelConfig = members.from_hf(checkpoint.config)
    max_len = _max_model_len(config, model)
    model = within(model, max_len)
    groups = devices_for(config, group)
    if groups[0][0].platform == "cpu":
        keep_freed_memory()
    plan = members.plan(model)
    check_fit(plan, model.kv_heads, config.tp, rules_of(experts=config.ep, tokens=config.sp))
    if config.quantization is not None:
        rounded = RoundedSource(checkpoint.source, plan, SCHEMES[config.quantization])
        checkpoint = replace(checkpoint, source=rounded)
    check(plan, checkpoint.source, allowed_unused=members.unread)
    chosen = choose_kernels(config, groups[0][0].platform, config.tp * config.dp)
    return _Parts(checkpoint, config, group, members, model, plan, max_len, chosen, exchanges), groups


@dataclass(frozen=True)
class _Parts:
    """What all replicas have in common."""

    checkpoint: Checkpoint
    config: EngineConfig
    group: Group
    family: Family
    model: ModelConfig
    plan: Any
    max_len: int
    chosen: Chosen
    exchanges: bool


@dataclass(frozen=True)
class _Ready:
    """A replica whose devices can run: what is left is to plan what."""

    blueprint: Blueprint
    programs: Programs
    budget: Budget
    pages: int
    compile_seconds: float


def _ready(parts: _Parts, devices: Sequence[jax.Device], progress: Progress) -> _Ready:
    """Compile for a replica's devices, and load its weights."""
    device = next(one for one in devices if one.process_index == jax.process_index())
    blueprint = Blueprint.of(parts.family, parts.model, parts.config, parts.max_len, devices, parts.chosen)
    lowering, shapes, placement = blueprint.lowering, blueprint.shapes, blueprint.placement
    kv, count = lowering.kv, parts.config.tp * parts.config.dp
    config = replace(parts.config, page_size=kv.page_size)
    abstract = placement.abstract(parts.plan, parts.checkpoint.source)
    steps = StepCache(store_of(config.compile_cache, "steps"), compile_facts(devices), devices)
    page_io = PageIO(lowering, parts.model.head_dim) if parts.exchanges else None
    programs = Programs(lowering, abstract, shapes, steps, parts.group, page_io)
    limit = device_limit(device, config.memory_fraction, count) - (STAGED * page_io.bytes_a_call if page_io else 0)
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:  # reading weights and compiling need nothing of each other
        weights = pool.submit(_weights, parts, placement, abstract, progress)
        budget, pages = programs.compile(
            limit=limit,
            most_kv_bytes=most_kv_bytes(device, count, limit),
            most_pages=config.max_seqs * lowering.pages_per_row,
            least_pages=1 if config.max_model_len is None else lowering.pages_per_row,
            kv_bytes=config.kv_bytes,
            progress=progress,
        )
        compile_seconds = time.monotonic() - started
    programs.start(weights.result())
    if device.platform == "cpu":
        give_back_freed_memory()
    return _Ready(blueprint, programs, budget, pages, compile_seconds)


def _engine(parts: _Parts, devices: Sequence[jax.Device], compiles: CompileCounter, progress: Progress) -> Engine:
    """One replica on its devices."""
    device, ready = devices[0], _ready(parts, devices, progress)
    blueprint, budget, pages = ready.blueprint, ready.budget, ready.pages
    kv, shapes = blueprint.lowering.kv, blueprint.shapes
    config = replace(parts.config, page_size=kv.page_size)
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
        compile_seconds=ready.compile_seconds,
        num_shapes=len(shapes.all()),
        policy=config.policy,
        prefix_caching=config.prefix_caching,
        memory_fraction=config.memory_fraction,
    )
    scheduler = Scheduler(config, PagePool(pages), shapes, max_len)
    exchange = Exchange(scheduler, ready.programs) if parts.exchanges else None
    return Engine(scheduler, JaxRunner(ready.programs), info, compiles, exchange)


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
    if parts.group.size > 1:
        member = f"member {parts.group.rank} of {parts.group.size}"
        logger.info("%s read %d bytes of weights (%s)", member, placement.tally.bytes, gib(placement.tally.bytes))
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
