"""Runs step plans on a device. `Runner` is what the loop needs; `JaxRunner` is the real one."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from slipstream.api.engine import TokenLogprobs
from slipstream.engine import request
from slipstream.engine.programs import Programs
from slipstream.engine.request import StepPlan
from slipstream.engine.sampler import Logprobs, is_special
from slipstream.engine.shapes import Shape
from slipstream.engine.slots import slot_row
from slipstream.engine.step import SAMPLES, SPECIAL, Sampled


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
    """Runs plans with the `programs` of one model on one device, or on one mesh, which `compile` and `start` readied.

    What devices do is asked of `programs` alone: in a group of processes the others do the same (`engine.group`).
    """

    def __init__(self, programs: Programs) -> None:
        self.shapes = programs.shapes
        self._programs = programs
        self._lowering = programs.lowering
        self._slot_owner: dict[int, tuple[request.Sequence, int]] = {}
        self._special = [False] * programs.lowering.max_seqs  # by slot: whether its sequence `is_special`

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
        return Dispatched(plan, self._programs.step(shape, self._describe(shape, plan)))

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

    def _describe(self, shape: Shape, plan: StepPlan) -> np.ndarray:
        """The host's part of a step: a `Batch` as `flat_sizes` lays it out, the plan's rows first."""
        rows, flat = shape.rows, self._programs.blank(shape)
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
        self._programs.admit(slot, row)


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
