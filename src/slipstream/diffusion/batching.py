"""A pool of pictures of one size that share denoising steps, each at a step, with a prompt and a sampler of its own.

A picture joins and leaves between two steps. Nothing of it is part of a compiled function: its text, its numbers and
its places are arrays. Decided here in Python, computed in `slots`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array, device_put
from jax.sharding import Sharding

from slipstream.diffusion import slots as device
from slipstream.diffusion.pipeline import Family, Kept, Text
from slipstream.diffusion.programs import Programs
from slipstream.diffusion.request import Job
from slipstream.diffusion.reuse import Guess
from slipstream.diffusion.slots import Numbers, Places
from slipstream.kernels.ragged import Kernels


@dataclass(frozen=True, eq=False)
class Start:
    """A job with its arrays. `negative`: the other pass's text, None for one pass. The rest as `slots.Slots` has it.

    None: from the seed (`noise`), or there is none (`picture`, `mask`, `extra`).
    """

    job: Job
    text: Text
    negative: Text | None
    noise: np.ndarray | None = None
    picture: Array | None = None
    mask: np.ndarray | None = None
    extra: Array | None = None

    @property
    def id(self) -> str:
        """The request's id."""
        return self.job.request.id


class Moved(NamedTuple):
    """A picture after a step. `latents` [1, h, w, c] after the last one, else None. `passed`: the model ran.

    `lines`: which rows of the step were the picture's.
    """

    id: str
    step: int
    steps: int
    latents: Array | None
    passed: bool
    lines: tuple[int, ...] = ()


class Tick(NamedTuple):
    """A started step. `done`: there when it is finished. `rows`: passes of the model. `computed`: those and padding.

    `reused` bool [computed]: rows whose pass took most of an earlier one; None without first-block caching.
    """

    moved: list[Moved]
    done: list[Array]
    rows: int
    computed: int
    reused: Array | None = None


@dataclass(eq=False)
class _Occupant:
    """A picture in the pool: its rows (the second for its other pass) and how many of its steps were started.

    `kept`: the model has run for it, so that there is something to reuse.
    """

    start: Start
    row: int
    other: int | None
    guesses: tuple[Guess | None, ...]
    done: int = 0
    kept: bool = False

    @property
    def rows(self) -> tuple[int, ...]:
        return (self.row,) if self.other is None else (self.row, self.other)


class Pool:
    """Pictures of `height` x `width` pixels. Not thread safe.

    `batches`: how many rows a step may compute, rising; the last is the size of the pool. Each is compiled once; a step
    takes the smallest that holds its rows. `adapters`: how many the weights have beside them.
    `programs`: the compiled functions of the size, its own if None. `keeps`: tokens and width of what first-block
    caching keeps, None for none.
    """

    def __init__(
        self,
        family: Family,
        weights: Any,
        height: int,
        width: int,
        text: Text,
        *,
        batches: tuple[int, ...],
        kernels: Kernels,
        home: Sharding,
        adapters: int = 0,
        programs: Programs | None = None,
        keeps: tuple[int, int] | None = None,
    ) -> None:
        traits = family.traits
        self.family = family
        self.batches = batches
        self.shape = (height // traits.factor, width // traits.factor, traits.channels)
        self._weights, self._kernels, self._home = weights, kernels, home
        self._programs = programs or Programs()
        self._numbers = device.NUMBERS + adapters
        self._sizes = family.sizes(height, width)
        # Everything lies where the weights do: a function is compiled again for arrays that lie elsewhere.
        self._slots = device_put(
            self._programs.empty(batches[-1], *self.shape, traits.extra, len(self._sizes), text), home
        )
        nothing = None if keeps is None else self._programs.nothing_kept(batches[-1], *keeps, text)
        self._kept: Kept | None = None if nothing is None else device_put(nothing, home)
        self._free = list(range(batches[-1]))
        self._in: dict[str, _Occupant] = {}
        self._waiting: deque[Start] = deque()
        self._blank = np.zeros(self.shape, np.float32)
        self._all = np.ones((*self.shape[:2], 1), np.float32)
        self._no_extra = np.zeros((*self.shape[:2], traits.extra), np.float32)

    @property
    def rows(self) -> int:
        """Rows in all."""
        return self.batches[-1]

    @property
    def running(self) -> int:
        """Pictures that have rows."""
        return len(self._in)

    @property
    def waiting(self) -> int:
        """Pictures that have none yet."""
        return len(self._waiting)

    def add(self, start: Start) -> None:
        """Queue a picture; it joins when there are rows for it, in the order of their coming."""
        self._waiting.append(start)

    def cancel(self, id: str) -> bool:
        """Drop a picture; its rows are free for the next step. False if it is not here (any more)."""
        occupant = self._in.pop(id, None)
        if occupant is not None:
            self._release(occupant)
            return True
        for start in self._waiting:
            if start.id == id:
                self._waiting.remove(start)
                return True
        return False

    def step(self) -> Tick:
        """Admit who is waiting and start a step of all pictures; it need not be finished when this returns."""
        while self._waiting and len(self._free) >= self._needs(self._waiting[0]):
            self._admit(self._waiting.popleft())
        for one in self._in.values():
            self._refresh(one)
        run = [one for one in self._in.values() if one.guesses[one.done] is None]
        guess = [one for one in self._in.values() if one.guesses[one.done] is not None]
        rows = sum(len(one.rows) for one in run)
        size = next((size for size in self.batches if size >= rows), 0) if rows else 0
        done: list[Array] = []
        reused: Array | None = None
        if run:
            finished, reused = self._run(run, size)
            done.append(finished)
        if guess:
            done.append(self._coast(guess))
        lines = iter(range(rows))
        moved = [self._moved(one, tuple(next(lines) for _ in one.rows)) for one in run]
        return Tick(moved + [self._moved(one) for one in guess], done, rows, size, reused)

    def preview(self, id: str) -> Array | None:
        """Latents [1, h, w, c] of the picture that the model saw in its last step; None if it is not here."""
        occupant = self._in.get(id)
        if occupant is None:
            return None
        seen: Array = self._programs.latents_of(self._slots, np.int32(occupant.row))[1]
        return seen

    def warm_up(self, text: Text) -> None:
        """Compile all that steps need, with an empty pool."""
        self._slots = self._placed(0, self._blank, self._blank, self._all, self._no_extra, text, (0.0, 0.0))
        self._slots = self._with_text(0, text)
        self._slots = self._programs.refresh(self._slots, np.int32(0), self._noise(0, 0))
        self._programs.latents_of(self._slots, np.int32(0))
        for size in self.batches:
            self._denoise(*self._filled((), size), np.zeros(size, np.float32))
        numbers, places = self._filled((), self.rows)
        self._slots, done = self._programs.coast(self._slots, numbers, places)
        jax.block_until_ready(done)

    @staticmethod
    def _needs(start: Start) -> int:
        return 1 if start.negative is None else 2

    def _release(self, occupant: _Occupant) -> None:
        self._free = sorted((*self._free, *occupant.rows))

    def _admit(self, start: Start) -> None:
        job, row = start.job, self._free.pop(0)
        other = None if start.negative is None else self._free.pop(0)
        noise = self._noise(job.seed, 0) if start.noise is None else start.noise
        amounts = (job.schedule.pure, 0.0) if job.pure else (job.schedule.noise, job.schedule.picture)
        self._slots = self._placed(
            row,
            noise,
            self._blank if start.picture is None else start.picture,
            self._all if start.mask is None else start.mask,
            self._no_extra if start.extra is None else start.extra,
            start.text,
            amounts,
        )
        if start.negative is not None and other is not None:
            self._slots = self._with_text(other, start.negative)
        reuse, steps = job.request.reuse, job.schedule.steps
        times = tuple(one.time for one in job.schedule.rows)
        self._in[start.id] = _Occupant(start, row, other, (None,) * steps if reuse is None else reuse.guesses(times))

    def _refresh(self, one: _Occupant) -> None:
        """Draw the noise of a picture's next step, if it takes any."""
        job = one.start.job
        if job.schedule.rows[one.done].fresh:
            noise = self._noise(job.seed, job.begin + one.done + 1)
            self._slots = self._programs.refresh(self._slots, np.int32(one.row), noise)

    def _noise(self, seed: int, number: int) -> Array:
        drawn = self._programs.unit_noise(device.words(seed), np.uint32(number), self.shape)
        return device_put(drawn, self._home)

    def _placed(
        self, row: int, noise: Any, picture: Any, mask: Any, extra: Any, text: Text, amounts: tuple[float, float]
    ) -> device.Slots:
        given = device_put((noise, picture, mask, extra, text, self._sizes, np.array(amounts, np.float32)), self._home)
        placed: device.Slots = self._programs.admit(self._slots, np.int32(row), *given)
        return placed

    def _with_text(self, row: int, text: Text) -> device.Slots:
        given = device_put((text, self._sizes), self._home)
        placed: device.Slots = self._programs.admit_text(self._slots, np.int32(row), *given)
        return placed

    def _run(self, occupants: Sequence[_Occupant], size: int) -> tuple[Array, Array | None]:
        """Start a step of `size` rows with the model; what is there when it is done, and which rows reused."""
        rows = [row for one in occupants for row in self._lines(one)]
        limits = np.zeros(size, np.float32)
        limits[: len(rows)] = [one.start.job.limit if one.kept else 0.0 for one in occupants for _ in one.rows]
        for one in occupants:
            one.kept = True
        # Places among the rows of the step are known only now.
        where = {places.row: i for i, (_, places) in enumerate(rows)}
        lined = [(numbers, places._replace(other=where[places.other])) for numbers, places in rows]
        numbers, places = self._filled(lined, size)
        return self._denoise(numbers, places, limits)

    def _denoise(self, numbers: np.ndarray, places: np.ndarray, limits: np.ndarray) -> tuple[Array, Array | None]:
        model = self.family, self._kernels, self._weights
        if self._kept is None:
            self._slots, done = self._programs.denoise(*model, self._slots, numbers, places)
            return done, None
        self._slots, self._kept, reused = self._programs.denoise_reusing(
            *model, self._slots, self._kept, numbers, places, limits
        )
        return reused, reused

    def _coast(self, occupants: Iterable[_Occupant]) -> Array:
        """Start a step that guesses. It is small: all rows are computed whatever their number."""
        rows = [self._lines(one)[0] for one in occupants]
        numbers, places = self._filled(rows, self.rows)
        self._slots, done = self._programs.coast(self._slots, numbers, places)
        return done

    def _lines(self, one: _Occupant) -> list[tuple[Numbers, Places[int]]]:
        """The rows of a step that a picture takes; `other` is still a row of the pool."""
        job = one.start.job
        guess = one.guesses[one.done] or Guess(0.0, 0.0)
        numbers = Numbers(job.schedule.rows[one.done], job.guidance, job.embedded, guess, job.loras)
        other = one.row if one.other is None else one.other
        first = Places(one.row, one.row, other, one.row)
        if one.other is None:
            return [(numbers, first)]
        return [(numbers, first), (numbers, first._replace(row=one.other, other=one.other, write=self.rows))]

    def _filled(self, rows: Iterable[tuple[Numbers, Places[int]]], size: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows as arrays of `size`; what is left over is past the end, and writes nothing."""
        numbers = np.zeros((size, self._numbers), np.float32)
        places = np.zeros((size, len(Places._fields)), np.int32)
        places[:] = Places(self.rows, 0, 0, self.rows)
        for i, (number, place) in enumerate(rows):
            numbers[i], places[i] = number.flat(), place
        return numbers, places

    def _moved(self, one: _Occupant, lines: tuple[int, ...] = ()) -> Moved:
        passed = one.guesses[one.done] is None
        one.done += 1
        steps, latents = one.start.job.schedule.steps, None
        if one.done == steps:
            latents = self._programs.latents_of(self._slots, np.int32(one.row))[0]
            del self._in[one.start.id]
            self._release(one)
        return Moved(one.start.id, one.done, steps, latents, passed, lines)
