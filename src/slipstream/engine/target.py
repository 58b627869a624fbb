"""The steps of an engine, compiled for accelerators that are not there: what they need, and whether they fit.

Everything comes from config.json: the plan gives the weights' shapes, the compiler of the target says what a compiled
step needs beside them. Nothing runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax

from slipstream.checkpoint.quantized.rounded import RoundedSource
from slipstream.checkpoint.random_source import RandomSource
from slipstream.engine import layouts
from slipstream.engine.blueprint import Blueprint
from slipstream.engine.config import EngineConfig
from slipstream.engine.kernels import choose_kernels
from slipstream.engine.lowering import Lowering
from slipstream.engine.memory import Budget, gib, pages_for
from slipstream.engine.shapes import Shape, ShapePolicy
from slipstream.engine.target_options import TargetOptions
from slipstream.errors import ConfigError, OutOfMemory
from slipstream.hardware.profile import target_of
from slipstream.kernels.ragged import Kernels
from slipstream.models.llm.stack import within
from slipstream.models.registry import ModelConfig, family
from slipstream.parallel.ahead import bytes_on_device, compile_ahead
from slipstream.parallel.fit import check_fit
from slipstream.parallel.hlo import Collectives
from slipstream.parallel.rules import rules_of
from slipstream.parallel.topology import devices_of
from slipstream.quant.rounding import SCHEMES
from slipstream.spec.source import Source

DEFAULT_LENGTH = 8192


@dataclass(frozen=True)
class StepReport:
    """One compiled step. Bytes are of one device. `donated`: of arguments that results take the place of.

    `seconds`: of lowering and compiling.
    """

    tokens: int
    rows: int
    arguments: int
    donated: int
    temporaries: int
    code: int
    collectives: Collectives
    seconds: float


@dataclass(frozen=True)
class TargetReport:
    """Whether a model fits its target. Bytes are of one device, of which a replica has `tp`.

    `kv`: of the cache that was compiled, with `pages` pages. `fitting_tokens`: that a cache of all free memory holds.
    `kernels`: who computes attention.
    """

    device: str
    kernels: Kernels
    replicas: int
    tp: int
    limit: int
    weights: int
    kv: int
    pages: int
    page_size: int
    max_seqs: int
    max_model_len: int
    fitting_tokens: int
    prefill: StepReport
    decode: StepReport

    @property
    def largest_batch(self) -> int:
        """Sequences of `max_model_len` tokens that fit."""
        return self.fitting_tokens // (-(-self.max_model_len // self.page_size) * self.page_size)

    @property
    def largest_context(self) -> int:
        """Tokens that each of `max_seqs` sequences can have."""
        return self.fitting_tokens // self.page_size // self.max_seqs * self.page_size

    @property
    def fits(self) -> bool:
        """Whether `max_seqs` sequences of `max_model_len` tokens fit."""
        return self.largest_batch >= self.max_seqs


@dataclass(frozen=True)
class Outlined:
    """A model on devices that are not there: what can be compiled, and its weights' shapes.

    `memory`: bytes that a device has, `limit`: that are to be used of them.
    """

    lowering: Lowering
    weights: Any
    shapes: ShapePolicy
    limit: int
    memory: int
    device: str
    replicas: int

    @classmethod
    def of(cls, config: Mapping[str, Any], options: TargetOptions) -> Outlined:
        """From config.json. Raises ConfigError for what does not go together, or without the target's compiler."""
        target = target_of(options.target)
        profile, tp = target.profile, options.tp or target.count
        if target.count % tp:
            raise ConfigError(f"--tp {tp} does not divide the {target.count} devices of {options.target}")
        members = family(config)
        model: ModelConfig = members.from_hf(config)
        plan = members.plan(model)
        check_fit(plan, model.kv_heads, tp, rules_of(experts=options.ep, tokens=options.sp))
        length = options.max_model_len or min(model.max_position, DEFAULT_LENGTH)
        if length > model.max_position:
            raise ConfigError(f"--max-model-len {length}: the model was made for {model.max_position} tokens")
        settings = _settings(options, tp, target.count // tp)
        devices = devices_of(target)
        chosen = choose_kernels(settings, profile.platform, target.count)
        blueprint = Blueprint.of(members, within(model, length), settings, length, devices[:tp], chosen)
        source: Source = RandomSource(plan)  # Only its shapes are asked for.
        if settings.quantization is not None:
            source = RoundedSource(source, plan, SCHEMES[settings.quantization])
        weights = blueprint.placement.abstract(plan, source)
        limit = int(profile.memory_bytes * options.memory_fraction)
        return cls(
            blueprint.lowering, weights, blueprint.shapes, limit, profile.memory_bytes, profile.name, target.count // tp
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights on a device."""
        return sum(map(bytes_on_device, jax.tree.leaves(self.weights)))

    def settled(self, pages: int) -> tuple[Outlined, StepReport]:
        """This with weights laid out as an engine keeps them, and its largest decode step, compiled.

        Raises OutOfMemory as `compile` does.
        """
        shape = self.shapes.decode[-1]
        report, compiled = self._compiled(shape, pages)
        wanted = layouts.read_copied(compiled) if self.lowering.own_layouts else {}
        if not wanted:
            return self, report
        settled = replace(self, weights=layouts.asked(self.weights, wanted))
        return settled, settled.compile(shape, pages)

    def compile(self, shape: Shape, pages: int) -> StepReport:
        """Compile the step of a shape, with a cache of so many pages.

        Raises OutOfMemory where the compiler does. Those of TPUs refuse what a device cannot hold; of others the needs
        of the compiled step are added up.
        """
        return self._compiled(shape, pages)[0]

    def _compiled(self, shape: Shape, pages: int) -> tuple[StepReport, jax.stages.Compiled]:
        lowered = self.lowering.step(shape, pages, self.weights)
        try:
            compiled, needs = compile_ahead(lowered.function(), *lowered.arguments)
        except OutOfMemory as error:
            raise self._too_large(shape, pages, str(error)) from error
        if needs.total > self.memory:
            why = f"The step needs {gib(needs.total)}, the device has {gib(self.memory)}"
            raise self._too_large(shape, pages, why)
        report = StepReport(
            shape.tokens,
            shape.rows,
            needs.arguments,
            needs.donated,
            needs.temporaries,
            needs.code,
            needs.collectives,
            needs.seconds,
        )
        return report, compiled

    def _too_large(self, shape: Shape, pages: int, why: str) -> OutOfMemory:
        kv = pages * self.lowering.kv.bytes_per_page
        return OutOfMemory(
            f"{self.device} cannot hold {gib(self.weight_bytes)} of weights and {gib(kv)} of KV cache, with what a "
            f"step of {shape.tokens} tokens needs: {_ADVICE}. {why}"
        )


def _settings(options: TargetOptions, tp: int, dp: int) -> EngineConfig:
    """Those of the engine that is compiled for."""
    return EngineConfig(
        dtype=options.dtype,
        quantization=None if options.scheme == "none" else options.scheme,
        kv_dtype=options.kv_dtype,
        max_seqs=options.max_seqs,
        max_model_len=options.max_model_len,
        max_batched_tokens=options.max_batched_tokens,
        page_size=options.page_size,
        kernels=options.kernels,
        tp=tp,
        dp=dp,
        ep=options.ep,
        sp=options.sp,
    )


_ADVICE = "take more devices (--target, --tp), --scheme int8, or lower --max-seqs, --max-model-len or --kv-bytes"


def compile_for_target(config: Mapping[str, Any], options: TargetOptions) -> TargetReport:
    """Compile an engine's largest prefill and decode steps for a target.

    The layouts of weights are found first. Then the prefill step is compiled with room for one sequence: what it needs
    decides how many pages there are, and the decode step is compiled with all of them. Raises ConfigError or
    OutOfMemory.
    """
    outlined = Outlined.of(config, options)
    lowering, weights = outlined.lowering, outlined.weight_bytes
    kv, each = lowering.kv, lowering.pages_per_row
    if weights + each * kv.bytes_per_page > outlined.limit:
        raise OutOfMemory(
            f"{gib(weights)} of weights and {gib(each * kv.bytes_per_page)} of KV cache for one sequence of "
            f"{lowering.max_len} tokens are more than the {gib(outlined.limit)} that a {outlined.device} may use: "
            f"{_ADVICE}"
        )
    if lowering.own_layouts:
        outlined, _ = outlined.settled(each)
    prefill = outlined.compile(outlined.shapes.mixed[-1], each)
    budget = Budget(outlined.limit, weights, prefill.temporaries + prefill.code)
    wanted = options.max_seqs * each
    pages = pages_for(kv, budget, most=wanted, least=each, kv_bytes=options.kv_bytes, most_kv_bytes=outlined.limit)
    decode = outlined.compile(outlined.shapes.decode[-1], pages)
    return TargetReport(
        outlined.device,
        lowering.kernels,
        outlined.replicas,
        options.tp or target_of(options.target).count,
        outlined.limit,
        weights,
        pages * kv.bytes_per_page,
        pages,
        kv.page_size,
        options.max_seqs,
        lowering.max_len,
        budget.free // kv.bytes_per_page * kv.page_size,
        prefill,
        decode,
    )
