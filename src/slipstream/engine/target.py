"""The steps of an engine, compiled for accelerators that are not there: what they need, and whether they fit.

Everything comes from config.json: the plan gives the weights' shapes, the compiler of the target says what a compiled
step needs beside them. Nothing runs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from slipstream.checkpoint.quantized.rounded import RoundedSource
from slipstream.checkpoint.random_source import RandomSource
from slipstream.engine.hlo import Collectives, collectives
from slipstream.engine.lowering import Lowering
from slipstream.engine.memory import Budget, KVShape, bytes_on_device, gib, kv_dtype, pages_for, row_size
from slipstream.engine.placement import Placement
from slipstream.engine.shapes import Shape, ShapePolicy
from slipstream.engine.target_options import TargetOptions
from slipstream.engine.topology import devices_of
from slipstream.errors import ConfigError, OutOfMemory
from slipstream.hardware.profile import target_of
from slipstream.kernels.ragged import Kernels
from slipstream.models.registry import ModelConfig, family
from slipstream.parallel.fit import check_fit
from slipstream.parallel.mesh import make_mesh
from slipstream.parallel.rules import rules_of
from slipstream.parallel.spread import heads_of
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
    """

    device: str
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
        plan, rules = members.plan(model), rules_of(experts=options.ep, tokens=options.sp)
        check_fit(plan, model.kv_heads, tp, rules)
        length = options.max_model_len or min(model.max_position, DEFAULT_LENGTH)
        if length > model.max_position:
            raise ConfigError(f"--max-model-len {length}: the model was made for {model.max_position} tokens")
        devices = devices_of(target)
        mesh = make_mesh(devices[:tp], model.kv_heads)
        dtype = jnp.dtype(options.dtype)
        held = kv_dtype(options.kv_dtype, dtype, profile.platform)
        kernels: Kernels = "reference" if members.latent else profile.kernels
        size, page = row_size(model.head_dim, kernels), options.page_size or profile.page_size
        heads = heads_of(mesh, rules)
        kv = KVShape(model.layers, model.kv_heads, size, page, held, values=not members.latent, heads=heads)
        lowering = Lowering(members, model, kv, options.max_seqs, length, kernels, mesh)
        source: Source = RandomSource(plan)  # Only its shapes are asked for.
        if options.scheme != "none":
            source = RoundedSource(source, plan, SCHEMES[options.scheme])
        weights = Placement(devices[0], dtype, False, "exact", mesh, rules).abstract(plan, source)
        shapes = ShapePolicy(options.max_seqs, options.max_batched_tokens, lowering.pages_per_row)
        limit = int(profile.memory_bytes * options.memory_fraction)
        return cls(lowering, weights, shapes, limit, profile.memory_bytes, profile.name, target.count // tp)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights on a device."""
        return sum(map(bytes_on_device, jax.tree.leaves(self.weights)))

    def compile(self, shape: Shape, pages: int) -> StepReport:
        """Compile the step of a shape, with a cache of so many pages.

        Raises OutOfMemory where the compiler does. Those of TPUs refuse what a device cannot hold; of others the needs
        of the compiled step are added up.
        """
        started = time.monotonic()
        lowered = self.lowering.step(shape, pages, self.weights)
        try:
            compiled = lowered.function().lower(*lowered.arguments).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise self._too_large(shape, pages, f"XLA says: {str(error).splitlines()[0][:300]}") from error
        seconds = time.monotonic() - started
        memory = compiled.memory_analysis()
        own = memory.output_size_in_bytes - memory.alias_size_in_bytes
        needed = memory.argument_size_in_bytes + own + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
        if needed > self.memory:
            raise self._too_large(shape, pages, f"The step needs {gib(needed)}, the device has {gib(self.memory)}")
        return StepReport(
            shape.tokens,
            shape.rows,
            memory.argument_size_in_bytes,
            memory.alias_size_in_bytes,
            memory.temp_size_in_bytes,
            memory.generated_code_size_in_bytes,
            collectives(compiled.as_text()),
            seconds,
        )

    def _too_large(self, shape: Shape, pages: int, why: str) -> OutOfMemory:
        kv = pages * self.lowering.kv.bytes_per_page
        return OutOfMemory(
            f"{self.device} cannot hold {gib(self.weight_bytes)} of weights and {gib(kv)} of KV cache, with what a "
            f"step of {shape.tokens} tokens needs: {_ADVICE}. {why}"
        )


_ADVICE = "take more devices (--target, --tp), --scheme int8, or lower --max-seqs, --max-model-len or --kv-bytes"


def compile_for_target(config: Mapping[str, Any], options: TargetOptions) -> TargetReport:
    """Compile an engine's largest prefill and decode steps for a target.

    The prefill step is compiled first, with room for one sequence: what it needs decides how many pages there are, and
    the decode step is compiled with all of them. Raises ConfigError or OutOfMemory.
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
    prefill = outlined.compile(outlined.shapes.mixed[-1], each)
    budget = Budget(outlined.limit, weights, prefill.temporaries + prefill.code)
    wanted = options.max_seqs * each
    pages = pages_for(kv, budget, most=wanted, least=each, kv_bytes=options.kv_bytes, most_kv_bytes=outlined.limit)
    decode = outlined.compile(outlined.shapes.decode[-1], pages)
    return TargetReport(
        outlined.device,
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
