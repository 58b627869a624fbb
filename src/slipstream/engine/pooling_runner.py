"""Runs step plans for vectors: a `Runner` whose rows end with a vector in place of a token."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding

from slipstream.checkpoint.progress import Progress
from slipstream.engine.kernels import Chosen
from slipstream.engine.memory import Budget, KVShape, pages_for
from slipstream.engine.pooling import PoolingModel
from slipstream.engine.pooling_step import DONATED, PoolingRows, make_pooling_step
from slipstream.engine.programs import COMPILE_THREADS
from slipstream.engine.request import StepPlan
from slipstream.engine.runner import RowResult
from slipstream.engine.shapes import Shape, ShapePolicy
from slipstream.engine.step_cache import CompiledStep, StepCache
from slipstream.hardware.host import read_host
from slipstream.kernels.native.memory import untouched_zeros
from slipstream.kernels.ragged import KVCache
from slipstream.parallel.ahead import bytes_on_device
from slipstream.parallel.spread import whole


@dataclass(frozen=True)
class Pooled:
    """A step in flight: `vectors` float32 [s, e]."""

    plan: StepPlan
    vectors: Array


class PoolingRunner:
    """One model on one device, or on one mesh. `kv`: None for a model without a cache, whose texts are computed whole.

    Every shape is compiled before the first request. `weights` need not hold data before `warm_up`.
    """

    def __init__(
        self,
        model: PoolingModel,
        weights: Any,
        kv: KVShape | None,
        shapes: ShapePolicy,
        chosen: Chosen,
        device: jax.Device,
        mesh: Mesh | None,
        step_cache: StepCache,
    ) -> None:
        self.model = model
        self.weights = weights
        self.kv = kv
        self.shapes = shapes
        self.chosen = chosen
        self.device = device
        self.mesh = mesh
        self._step_cache = step_cache
        self._steps: dict[Shape, CompiledStep] = {}
        self._cache: KVCache | None = None

    def compile(
        self,
        *,
        limit: int,
        most_kv_bytes: int,
        most_pages: int,
        least_pages: int,
        kv_bytes: int | None,
        progress: Progress,
    ) -> tuple[Budget, int]:
        """Compile all shapes, the largest first, and make the cache; the memory budget and the cache's pages.

        `most_kv_bytes`, `most_pages`, `least_pages`, `kv_bytes`: see `pages_for`. Without a cache the pages are
        `most_pages`, which take no memory.
        """
        shapes = sorted(self.shapes.mixed, reverse=True)
        weight_bytes = sum(map(bytes_on_device, jax.tree.leaves(self.weights)))

        def size(temporaries: int) -> tuple[Budget, int]:
            budget = Budget(limit, weight_bytes, temporaries)
            if self.kv is None:
                return budget, most_pages
            return budget, pages_for(
                self.kv, budget, most=most_pages, least=least_pages, kv_bytes=kv_bytes, most_kv_bytes=most_kv_bytes
            )

        progress("compile", 0, len(shapes))
        budget, pages = size(0)
        while True:
            self._steps[shapes[0]] = self._compile(shapes[0], pages)
            budget, fitting = size(self._steps[shapes[0]].temporaries)
            if fitting >= pages:
                break
            pages = fitting
        with ThreadPoolExecutor(min(COMPILE_THREADS, read_host().cpus)) as pool:
            steps = pool.map(lambda shape: self._compile(shape, pages), shapes[1:])
            for done, (shape, step) in enumerate(zip(shapes[1:], steps, strict=True), 1):
                progress("compile", done, len(shapes))
                self._steps[shape] = step
        progress("compile", len(shapes), len(shapes))
        if self.kv is not None:
            self._cache = self._empty_cache(pages)
        return budget, pages

    def warm_up(self) -> None:
        """Run the smallest step once on empty rows."""
        shape = min(self._steps)
        jax.block_until_ready(self._run(shape, PoolingRows.empty(shape, self.shapes.max_pages_per_seq)))

    def rows_computed(self, plan: StepPlan) -> int:
        """Token rows of the compiled shape that the plan takes."""
        return self._shape_of(plan).tokens

    def dispatch(self, plan: StepPlan) -> Pooled:
        """Start a step."""
        shape = self._shape_of(plan)
        rows = PoolingRows.empty(shape, self.shapes.max_pages_per_seq)
        end = 0
        for i, row in enumerate(plan.rows):
            rows.tokens[end : end + row.count] = row.tokens
            end += row.count
            rows.starts[i + 1] = end
            rows.lengths[i] = row.start + row.count
            second = row.sequence.request.second_from
            if second is not None:
                rows.second[i] = second
            if self.kv is not None:
                rows.pages[i, : len(row.pages)] = row.pages
        rows.starts[len(plan.rows) + 1 :] = end
        return Pooled(plan, self._run(shape, rows))

    def collect(self, handle: Pooled) -> list[RowResult]:
        """Wait for a step; the vectors of the rows whose texts it ended."""
        vectors = np.asarray(handle.vectors, "<f4")
        return [
            # The scheduler wants a token of a row that ends a prompt: any will do.
            RowResult(0 if row.samples else None, None, [], vector.tobytes() if row.samples else None)
            for row, vector in zip(handle.plan.rows, vectors, strict=False)
        ]

    def _shape_of(self, plan: StepPlan) -> Shape:
        return self.shapes.shape_for(plan.num_tokens, len(plan.rows), decode_only=False)

    def _run(self, shape: Shape, rows: PoolingRows) -> Array:
        self._cache, vectors = self._steps[shape].call(self.weights, self._cache, rows.flat)
        return vectors

    def _empty_cache(self, pages: int) -> Any:
        empty = self._abstract_cache(pages)
        if self.chosen.native:
            return untouched_zeros(empty)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding or self.device), empty)

    def _abstract_cache(self, pages: int) -> Any:
        kv, mesh = self.kv, self.mesh
        if kv is None:
            return None
        cache: KVCache = jax.eval_shape(lambda: kv.cache(pages, self.chosen.kernels))
        if mesh is None:
            return cache
        return jax.tree.map(
            lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec)),
            cache,
            cache.specs(),
        )

    def _compile(self, shape: Shape, pages: int) -> CompiledStep:
        pages_per_row = self.shapes.max_pages_per_seq
        flat = PoolingRows.empty(shape, pages_per_row).flat

        def function() -> Any:
            kernels, interpreted = self.chosen
            step = make_pooling_step(self.model, shape, pages_per_row, kernels, interpreted=interpreted)
            if everywhere is None:
                return jax.jit(step, donate_argnums=DONATED)
            held = jax.tree.map(lambda leaf: leaf.sharding, cache)
            return jax.jit(step, donate_argnums=DONATED, out_shardings=(held, everywhere))

        everywhere, cache = None if self.mesh is None else whole(self.mesh), self._abstract_cache(pages)
        arguments = (self.weights, cache, jax.ShapeDtypeStruct(flat.shape, flat.dtype, sharding=everywhere))
        model = self.model
        facts = {
            "family": model.name,
            "config": repr(model.config),
            "pooling": repr(model.pooling),
            "activation": model.activation,
            "mesh": repr(self.mesh),
        }
        own = {"kernels": list(self.chosen), "kv": repr(self.kv), "shape": [shape.tokens, shape.rows]}
        return self._step_cache.get("pooling", function, arguments, **facts, **own)
