"""Runs step plans on a device. `Runner` is what the loop needs; `JaxRunner` is the real one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from slipstream.api.engine import TokenLogprobs
from slipstream.checkpoint.progress import Progress
from slipstream.engine import layouts, request
from slipstream.engine.lowering import Lowered, Lowering
from slipstream.engine.memory import Budget, bytes_on_device, pages_for
from slipstream.engine.request import StepPlan
from slipstream.engine.sampler import Logprobs, is_special
from slipstream.engine.shapes import Shape, ShapePolicy
from slipstream.engine.slots import slot_row
from slipstream.engine.step import SAMPLES, SPECIAL, Sampled, State, flat_sizes
from slipstream.engine.step_cache import CompiledStep, StepCache
from slipstream.hardware.host import read_host

COMPILE_THREADS = 4  # at most: each holds a module, and its code while it is made


class RowResult(NamedTuple):
    """A row's outcome: `token` if it sampled, with log probabilities if asked for; so too for prompt positions.

    `pooled`: the vector of a row that ends a text, from a runner that makes vectors; the token then means nothing.
    """

    token: int | None
    logprobs: TokenLogprobs | None
    prompt_logprobs: list[TokenLogprobs]
    pooled: bytes | None = None


class Runner(Protocol):
    """Executes plans in order. `dispatch` returns at once, `collect` waits for the results of one dispatch."""

    def rows_computed(self, plan: StepPlan) -> int:
        """Token rows that the plan's step will compute, padding included."""

    def dispatch(self, plan: StepPlan) -> Any:
        """Start a step; returns its handle."""

    def collect(self, handle: Any) -> list[RowResult]:
        """The results of a step, a row each in the plan's order."""


class Dispatched(NamedTuple):
    """A step in flight."""

    plan: StepPlan
    sampled: Sampled


class JaxRunner:
    """One model on one device, or on one mesh. `compile` makes every shape before the first request; none is after.

    `weights` are shapes until `start` gets those with data.
    """

    def __init__(self, lowering: Lowering, weights: Any, shapes: ShapePolicy, step_cache: StepCache) -> None:
        self.weights = weights
        self.shapes = shapes
        self._lowering = lowering
        self._step_cache = step_cache
        self._steps: dict[Shape, CompiledStep] = {}
        self._admit: CompiledStep | None = None
        self._empty: CompiledStep | None = None
        self._state: State | None = None
        self._slot_owner: dict[int, tuple[request.Sequence, int]] = {}
        self._special = [False] * lowering.max_seqs  # by slot: whether its sequence `is_special`
        self._blank: dict[Shape, np.ndarray] = {}

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
        """Compile all shapes; returns the memory budget that sizes the cache, and its pages.

        `limit`: bytes that may be used on a device. `most_kv_bytes`, `most_pages`, `least_pages`: see `pages_for`. The
        largest shape is compiled first: its temporaries decide how many pages fit.
        """
        shapes, lowering = self.shapes.all(), self._lowering
        if lowering.own_layouts:  # Decoding reads all weights for few tokens, so its step decides.
            decode = lowering.step(self.shapes.decode[-1], least_pages, self.weights)
            read = partial(self._step_cache.read, "layouts", decode.function, decode.arguments, layouts.read_copied)
            self.weights = layouts.asked(self.weights, read(**decode.facts))
        weight_bytes = sum(map(bytes_on_device, jax.tree.leaves(self.weights)))

        def size(temporaries: int) -> tuple[Budget, int]:
            budget = Budget(limit, weight_bytes, temporaries)
            return budget, pages_for(
                lowering.kv, budget, most=most_pages, least=least_pages, kv_bytes=kv_bytes, most_kv_bytes=most_kv_bytes
            )

        def step(shape: Shape, pages: int) -> CompiledStep:
            return self._compiled(lowering.step(shape, pages, self.weights))

        progress("compile", 0, len(shapes) + 1)
        budget, pages = size(0)
        while True:
            largest = step(shapes[0], pages)
            budget, fitting = size(largest.temporaries)
            if fitting >= pages:
                break
            pages = fitting
        self._steps[shapes[0]] = largest
        # XLA compiles without Python's lock, so two threads take little more than half of one's time.
        with ThreadPoolExecutor(min(COMPILE_THREADS, read_host().cpus)) as pool:
            admission = pool.submit(self._compiled, lowering.admit())
            steps = pool.map(lambda shape: step(shape, pages), shapes[1:])
            for done, (shape, compiled) in enumerate(zip(shapes[1:], steps, strict=True), 1):
                progress("compile", done, len(shapes) + 1)
                self._steps[shape] = compiled
            self._admit = admission.result()
        progress("compile", len(shapes), len(shapes) + 1)
        self._empty = self._compiled(lowering.empty(pages))
        progress("compile", len(shapes) + 1, len(shapes) + 1)
        return budget, pages

    def start(self, weights: Any) -> None:
        """Take the weights, make the cache, and run the smallest step once on an empty row.

        The device's threads and the weights are then in place. Weights that must be copied into another layout are
        given up; there is no cache beside them yet.
        """
        assert self._empty is not None, "compile() comes first"
        self.weights = layouts.laid_out(weights, self.weights) if self._lowering.own_layouts else weights
        self._state = self._empty.call()
        shape = min(self._steps)
        jax.block_until_ready(self._run(shape, self._describe(shape, StepPlan(()))))

    def rows_computed(self, plan: StepPlan) -> int:
        """Token rows of the compiled shape that the plan takes."""
        return self._shape_of(plan).tokens

    def dispatch(self, plan: StepPlan) -> Dispatched:
        """Start a step. Slots that changed hands are filled first."""
        for row in plan.rows:
            owner = (row.sequence, row.epoch)
            if self._slot_owner.get(row.slot) != owner:
                self._slot_owner[row.slot] = owner
                self._fill_slot(row.slot, row.sequence)
        shape = self._shape_of(plan)
        return Dispatched(plan, self._run(shape, self._describe(shape, plan)))

    def collect(self, handle: Dispatched) -> list[RowResult]:
        """Wait for a step and read its results; log probabilities only where a row asked for them."""
        plan, sampled = handle.plan, handle.sampled
        tokens: list[int] = np.asarray(sampled.tokens).tolist()
        wants = [row.sequence.request.sampling for row in plan.rows]
        logprobs = jax.device_get(sampled.logprobs) if any(w.logprobs is not None for w in wants) else None
        prompt = None
        if sampled.prompt is not None and any(w.prompt_logprobs is not None for w in wants):
            prompt = jax.device_get(sampled.prompt)
        results, first = [], 0
        if logprobs is None and prompt is None:
            return [RowResult(tokens[i] if row.samples else None, None, []) for i, row in enumerate(plan.rows)]
        for i, (row, want) in enumerate(zip(plan.rows, wants, strict=True)):
            token = tokens[i] if row.samples else None
            own = None
            if token is not None and logprobs is not None and want.logprobs is not None:
                own = _entry(logprobs, i, token, want.logprobs)
            before: list[TokenLogprobs] = []
            if prompt is not None and want.prompt_logprobs is not None:
                following = enumerate(_following(row), first)
                before = [_entry(prompt, at, row.sequence.tokens[i], want.prompt_logprobs) for at, i in following]
            results.append(RowResult(token, own, before))
            first += row.count
        return results

    def _shape_of(self, plan: StepPlan) -> Shape:
        decode_only = all(row.count == 1 and not _reads_prompt(row) for row in plan.rows)
        return self.shapes.shape_for(plan.num_tokens, len(plan.rows), decode_only)

    def _run(self, shape: Shape, flat: np.ndarray) -> Sampled:
        assert self._state is not None, "compile() comes first"
        sampled: Sampled
        wishes = self._state.wishes
        cache, history, sampled = self._steps[shape].call(
            self.weights, self._state.cache, self._state.history, wishes, flat
        )
        self._state = State(cache, history, wishes)
        return sampled

    def _describe(self, shape: Shape, plan: StepPlan) -> np.ndarray:
        """The host's part of a step: a `Batch` as `flat_sizes` lays it out, the plan's rows first."""
        rows = shape.rows
        if shape not in self._blank:
            sizes = flat_sizes(rows, self._lowering.pages_per_row)
            blank = self._blank[shape] = np.zeros(sum(sizes), np.int32)
            blank[2 * rows + 1 : 3 * rows + 1] = self._lowering.max_seqs  # the slot of empty rows
        flat = self._blank[shape].copy()  # a step in flight may still read the one before
        ends, lengths, slots, wants = [], [], [], []
        end, at = 0, 4 * rows + 1
        for row in plan.rows:
            end += row.count
            ends.append(end)
            lengths.append(row.start + row.count)
            slots.append(row.slot)
            wants.append(row.samples * SAMPLES | self._special[row.slot] * SPECIAL)
            flat[at : at + len(row.pages)] = row.pages
            at += self._lowering.pages_per_row
        count = len(ends)
        flat[1 : count + 1] = ends
        flat[count + 1 : rows + 1] = end
        for i, numbers in enumerate((lengths, slots, wants), 1):
            flat[i * rows + 1 : i * rows + 1 + count] = numbers
        return flat

    def _fill_slot(self, slot: int, sequence: request.Sequence) -> None:
        row = slot_row(sequence.tokens, sequence.prompt_len, sequence.request.sampling, self._lowering.max_len)
        self._special[slot] = is_special(sequence.request.sampling)
        assert self._admit is not None and self._state is not None, "compile() comes first"
        history, wishes = self._admit.call(self._state.history, self._state.wishes, np.int32(slot), row)
        self._state = State(self._state.cache, history, wishes)

    def _compiled(self, lowered: Lowered) -> CompiledStep:
        """One of the engine's functions, from the cache if it is there."""
        return self._step_cache.get(lowered.kind, lowered.function, lowered.arguments, **lowered.facts)


def _following(row: request.RowPlan) -> range:
    """Positions of the prompt tokens that the row's hidden states predict."""
    return range(row.start + 1, min(row.start + row.count + 1, row.sequence.prompt_len))


def _reads_prompt(row: request.RowPlan) -> bool:
    """Whether the row needs a shape that computes log probabilities of the prompt."""
    return row.sequence.request.sampling.prompt_logprobs is not None and bool(_following(row))


def _entry(logprobs: Logprobs, i: int, token: int, top: int) -> TokenLogprobs:
    return TokenLogprobs(
        token,
        float(logprobs.chosen[i]),
        int(logprobs.rank[i]),
        np.asarray(logprobs.top_ids[i, :top]).tolist(),
        np.asarray(logprobs.top[i, :top]).tolist(),
    )
