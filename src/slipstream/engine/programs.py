"""What the devices of one replica run: compiled functions, the weights, and the state that they update.

In a group of processes (`engine.group`) each member has the same. The leader's runner calls `step` and `admit`; they
tell the followers, which `repeat` them.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np

from slipstream.checkpoint.progress import Progress
from slipstream.engine import layouts
from slipstream.engine.group import ALONE, Call, Group
from slipstream.engine.lowering import Lowered, Lowering
from slipstream.engine.memory import Budget, pages_for
from slipstream.engine.page_io import Blocks, PageIO
from slipstream.engine.shapes import Shape, ShapePolicy
from slipstream.engine.slots import Slots
from slipstream.engine.step import Sampled, State, flat_sizes
from slipstream.engine.step_cache import CompiledStep, StepCache
from slipstream.hardware.host import read_host
from slipstream.parallel.ahead import bytes_on_device

COMPILE_THREADS = 4  # at most: each holds a module, and its code while it is made

_MOST_BEGUN = 16
_ON_CPUS = ("cpu", "reference")
"""Kernels whose calls must not run far ahead in a group: on CPUs of several processes jax 0.10.2 stands still for ever
once 32 calls wait for one another.
"""


class Programs:
    """One model on one device, or on one mesh. `compile` makes every shape before the first request; none is after.

    `weights` are shapes until `start` gets those with data. `page_io`: how pages leave and enter the cache, None where
    they do not; not in a group, whose followers would have to be told.
    """

    def __init__(
        self,
        lowering: Lowering,
        weights: Any,
        shapes: ShapePolicy,
        step_cache: StepCache,
        group: Group = ALONE,
        page_io: PageIO | None = None,
    ) -> None:
        assert page_io is None or group.size == 1
        self.page_io = page_io
        self.lowering = lowering
        self.weights = weights
        self.shapes = shapes
        self._step_cache = step_cache
        self._group = group
        self._steps: dict[Shape, CompiledStep] = {}
        self._admit: CompiledStep | None = None
        self._empty: CompiledStep | None = None
        self._state: State | None = None
        self._blank: dict[Shape, np.ndarray] = {}
        self._calls = 0
        self._paced = group.size > 1 and lowering.kernels in _ON_CPUS

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
        largest shape is compiled first: its temporaries decide how many pages fit, in a group on all members.
        """
        shapes, lowering = self.shapes.all(), self.lowering
        if lowering.own_layouts:  # Decoding reads all weights for few tokens, so its step decides.
            decode = lowering.step(self.shapes.decode[-1], least_pages, self.weights)
            read = partial(self._step_cache.read, "layouts", decode.function, decode.arguments, layouts.read_copied)
            self.weights = layouts.asked(self.weights, read(**decode.facts))
        weight_bytes = sum(map(bytes_on_device, jax.tree.leaves(self.weights)))

        def size(temporaries: int) -> tuple[Budget, int]:
            budget = Budget(limit, weight_bytes, temporaries)
            pages = pages_for(
                lowering.kv, budget, most=most_pages, least=least_pages, kv_bytes=kv_bytes, most_kv_bytes=most_kv_bytes
            )
            return budget, self._group.smallest(pages)

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
        if self.page_io is not None:
            self.page_io.compile(pages, self._step_cache)
        progress("compile", len(shapes) + 1, len(shapes) + 1)
        return budget, pages

    def start(self, weights: Any) -> None:
        """Take the weights, make the cache, and run the smallest step once on an empty row.

        The device's threads and the weights are then in place. Weights that must be copied into another layout are
        given up; there is no cache beside them yet.
        """
        assert self._empty is not None, "compile() comes first"
        self.weights = layouts.laid_out(weights, self.weights) if self.lowering.own_layouts else weights
        self._state = self._empty.call()
        shape = min(self._steps)
        jax.block_until_ready(self._step(shape, self.blank(shape)))

    def step(self, shape: Shape, flat: np.ndarray) -> Sampled:
        """Start a step of a shape on rows as `flat_sizes` lays them out."""
        self._group.tell(Call("step", [np.array([shape.tokens, shape.rows], np.int32), flat]))
        return self._step(shape, flat)

    def admit(self, slot: int, row: Slots) -> None:
        """Give a slot to a sequence: `row` is its `slot_row`."""
        self._group.tell(Call("admit", [np.asarray(slot, np.int32), *jax.tree.leaves(row)]))
        self._fill(slot, row)

    def gather(self, pages: Sequence[int]) -> Blocks:
        """Start to copy pages out of the cache, as the steps begun so far leave them. See `PageIO.gather`."""
        assert self.page_io is not None and self._state is not None
        return self.page_io.gather(self._state.cache, pages)

    def scatter(self, pages: Sequence[int], blocks: Blocks) -> None:
        """Start to write pages, for the steps that begin from now on. See `PageIO.scatter`."""
        assert self.page_io is not None and self._state is not None
        cache = self.page_io.scatter(self._state.cache, pages, blocks)
        self._began(State(cache, self._state.history, self._state.wishes))

    def repeat(self, call: Call) -> Any:
        """Make a call that the leader told of; what it gives, which nobody here needs, may be waited for."""
        return _REPEATED[call.name](self, call.arrays)

    def blank(self, shape: Shape) -> np.ndarray:
        """A step's numbers with no rows, to be filled by the caller: a step in flight may still read another's."""
        rows = shape.rows
        if shape not in self._blank:
            sizes = flat_sizes(rows, self.lowering.pages_per_row)
            blank = self._blank[shape] = np.zeros(sum(sizes), np.int32)
            blank[2 * rows + 1 : 3 * rows + 1] = self.lowering.max_seqs  # the slot of empty rows
        return self._blank[shape].copy()

    def _step(self, shape: Shape, flat: np.ndarray) -> Sampled:
        assert self._state is not None, "start() comes first"
        sampled: Sampled
        wishes = self._state.wishes
        cache, history, sampled = self._steps[shape].call(
            self.weights, self._state.cache, self._state.history, wishes, flat
        )
        self._began(State(cache, history, wishes))
        return sampled

    def _fill(self, slot: int, row: Slots) -> None:
        assert self._admit is not None and self._state is not None, "start() comes first"
        history, wishes = self._admit.call(self._state.history, self._state.wishes, np.int32(slot), row)
        self._began(State(self._state.cache, history, wishes))

    def _began(self, state: State) -> None:
        """A call has begun that makes `state`."""
        self._state = state
        self._calls += 1
        if self._paced and self._calls % _MOST_BEGUN == 0:
            jax.block_until_ready(state.history)

    def _compiled(self, lowered: Lowered) -> CompiledStep:
        """One of the engine's functions, from the cache if it is there."""
        return self._step_cache.get(lowered.kind, lowered.function, lowered.arguments, **lowered.facts)


def _repeat_step(programs: Programs, arrays: Sequence[np.ndarray]) -> Sampled:
    (tokens, rows), flat = arrays
    return programs._step(Shape(int(tokens), int(rows)), flat)


def _repeat_admit(programs: Programs, arrays: Sequence[np.ndarray]) -> None:
    slot, *row = arrays
    programs._fill(int(slot), Slots(*row))  # type: ignore[arg-type]


_REPEATED = {"step": _repeat_step, "admit": _repeat_admit}
"""How a follower makes each call."""
