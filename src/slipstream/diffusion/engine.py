"""Requests to pictures: texts are encoded, pools step, finished latents are decoded. One step ahead of the device."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Sharding

from slipstream.diffusion.batching import Moved, Pool, Start, Tick
from slipstream.diffusion.pipeline import Family, Text, Weights
from slipstream.diffusion.preview import Colours
from slipstream.diffusion.request import Job, Limits, PictureRequest, resolve
from slipstream.diffusion.scheduler_config import SchedulerConfig
from slipstream.diffusion.texts import TextCache
from slipstream.errors import Overloaded, RequestError
from slipstream.kernels.ragged import Kernels

Tokenize = Callable[[str], tuple[np.ndarray, ...]]
"""A text as each encoder's token ids, int32 [1, s]."""


@dataclass(frozen=True)
class PoolOptions:
    """How pictures share steps.

    `batches`: how many passes of the model one step may compute, rising; each is compiled when it is first needed, and
    the last bounds what runs at once. `pools`: sizes of pictures that are kept ready; a size more drops the one that
    was idle longest. `waiting`: most pictures that wait. `text_bytes`: memory for encoded texts.
    """

    batches: tuple[int, ...] = (1, 2, 4)
    pools: int = 4
    waiting: int = 256
    text_bytes: int = 256 << 20


class Progressed(NamedTuple):
    """A picture is so many of its steps on."""

    id: str
    step: int
    steps: int


class Finished(NamedTuple):
    """A picture. `latents` float32 [h, w, c]; `picture` float32 [H, W, 3] in 0..1, None where latents were asked for.

    `passes`: steps in which the model ran. `seconds`: from the request on.
    """

    id: str
    seed: int
    latents: np.ndarray
    picture: np.ndarray | None
    passes: int
    seconds: float


Output = Progressed | Finished


class EngineCounts(NamedTuple):
    """Gauges and counters as of now.

    `rows_padded`: rows of steps that were computed for nobody. `step_seconds`: of steps since the last call.
    """

    running: int
    waiting: int
    pools: int
    steps: int
    passes: int
    rows_scheduled: int
    rows_padded: int
    finished: int
    text_hits: int
    text_misses: int
    step_seconds: list[float]


@dataclass(eq=False)
class _Open:
    """A request that is not finished. `decode`: whether its picture is wanted, not its latents alone."""

    job: Job
    pool: Pool
    decode: bool
    since: float
    passes: int = 0


class _Started(NamedTuple):
    """A step in flight with the pictures that are decoded after it. `at`: when it was dispatched, monotonic seconds."""

    tick: Tick
    pictures: dict[str, Array]
    at: float


class PictureEngine:
    """One image model being served. Not thread safe: one thread adds, aborts and steps."""

    def __init__(
        self,
        family: Family,
        weights: Weights,
        schedule: SchedulerConfig,
        tokenize: Tokenize,
        *,
        options: PoolOptions | None = None,
        limits: Limits | None = None,
        kernels: Kernels = "reference",
        home: Sharding | None = None,
    ) -> None:
        """Join parts that are ready; `loading.load` makes them from a checkpoint. `home`: where the weights lie."""
        self.family = family
        self.limits = limits or Limits()
        self.options = options or PoolOptions()
        self.schedule = schedule
        self.texts = TextCache(self.options.text_bytes)
        self._weights, self._tokenize, self._kernels = weights, tokenize, kernels
        self._home = home or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        self._pools: OrderedDict[tuple[int, int], Pool] = OrderedDict()
        self._open: dict[str, _Open] = {}
        self._in_flight: deque[_Started] = deque()
        self._steps = self._passes = self._finished = self._rows = self._padded = 0
        self._seconds: list[float] = []
        self._collected = 0.0
        self._colours: Colours | None = None

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._open or self._in_flight)

    @property
    def weight_bytes(self) -> int:
        """What the weights of all models take."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._weights))

    def check(self, request: PictureRequest) -> Job:
        """The request with everything decided. Raises RequestError for one that cannot be served, at no cost."""
        if request.id in self._open:
            raise RequestError(f"there is a request {request.id!r} already", param="id")
        job = resolve(request, self.family, self.schedule, self.limits)
        if job.guidance > 1 and self.options.batches[-1] < 2:
            raise RequestError("true guidance takes two passes a step, and the pool has one row", param="guidance")
        return job

    def add(self, request: PictureRequest, *, decode: bool = True) -> None:
        """Queue a request. Raises RequestError as `check` does, and where too many wait."""
        job = self.check(request)
        if sum(pool.waiting for pool in self._pools.values()) >= self.options.waiting:
            raise Overloaded(f"{self.options.waiting} pictures wait already", retry_after=1)
        text = self.text(request.prompt)
        pool = self._pool(job.height, job.width, text)
        pool.add(self._start(job, text))
        self._open[request.id] = _Open(job, pool, decode, time.monotonic())

    def abort(self, id: str) -> bool:
        """Drop a request; its rows are free for the next step. False if it is not here (any more)."""
        found = self._open.pop(id, None)
        if found is not None:
            found.pool.cancel(id)
        return found is not None

    def step(self) -> list[Output]:
        """Start a step of every pool with pictures, then wait for the one before it; what came of that one."""
        started = 0
        for pool in self._pools.values():
            if pool.running or pool.waiting:
                tick = pool.step()
                self._in_flight.append(_Started(tick, self._pictures(tick), time.monotonic()))
                self._steps += 1
                started += 1
        outputs: list[Output] = []
        while len(self._in_flight) > started:
            outputs += self._collect(self._in_flight.popleft())
        return outputs

    def text(self, text: str) -> Text:
        """A text encoded, from memory if it is there."""
        return self.texts.get(text, self._encoded)

    def preview(self, id: str) -> np.ndarray | None:
        """float32 [h, w, 3] in 0..1, as large as the latents: about what the model sees in an unfinished picture.

        None before its first step. The first call of all fits the map of colours, which takes a small decoding.
        """
        found = self._open.get(id)
        latents = None if found is None else found.pool.preview(id)
        if latents is None:
            return None
        return self._see().of(np.asarray(latents)[0])

    def warm_up(self, height: int, width: int) -> None:
        """Compile all that pictures of a size need."""
        text = self.text("")
        pool = self._pool(height, width, text)
        if pool.running or pool.waiting:
            return
        pool.warm_up(text)
        self._decoded_here(np.zeros((1, *pool.shape), np.float32))
        self._see()

    def counts(self) -> EngineCounts:
        """Gauges and counters as of now."""
        pools = self._pools.values()
        seconds, self._seconds = self._seconds, []
        return EngineCounts(
            running=sum(pool.running for pool in pools),
            waiting=sum(pool.waiting for pool in pools),
            pools=len(pools),
            steps=self._steps,
            passes=self._passes,
            rows_scheduled=self._rows,
            rows_padded=self._padded,
            finished=self._finished,
            text_hits=self.texts.hits,
            text_misses=self.texts.misses,
            step_seconds=seconds,
        )

    def _pool(self, height: int, width: int, text: Text) -> Pool:
        """The pool of a size, made if there is none. Over the bound, the one that was idle longest goes."""
        key = height, width
        if key not in self._pools:
            idle = [k for k, pool in self._pools.items() if not pool.running and not pool.waiting]
            for old in idle[: max(0, len(self._pools) + 1 - self.options.pools)]:
                del self._pools[old]
            self._pools[key] = Pool(
                self.family,
                self._weights.denoiser,
                height,
                width,
                text,
                batches=self.options.batches,
                kernels=self._kernels,
                home=self._home,
            )
        self._pools.move_to_end(key)
        return self._pools[key]

    def _start(self, job: Job, text: Text) -> Start:
        request, negative = job.request, None
        if job.guidance > 1:
            negative = self._no_text(text) if job.negative is None else self.text(job.negative)
        noise = None if request.latents is None else np.moveaxis(request.latents, 0, -1).astype(np.float32)
        if request.picture is None:
            return Start(job, text, negative, noise)
        picture, mask, extra = self._known(request.picture, request.mask)
        return Start(job, text, negative, noise, picture, mask, extra)

    def _known(self, picture: np.ndarray, mask: np.ndarray | None) -> tuple[Array, np.ndarray | None, Array | None]:
        """A known picture's latents, its mask of latents, and what a model that repaints reads; without the axis b."""
        given, weights = picture[None].astype(np.float32), self._weights.autoencoder
        latents = _encode(self.family, self._kernels, weights, given)
        if mask is None:
            return latents, None, None
        whole = mask[None, :, :, None].astype(np.float32)
        if not self.family.traits.extra:
            factor = self.family.traits.factor
            return latents, whole[0, ::factor, ::factor], None
        return latents, None, _beside(self.family, self._kernels, weights, given, whole)

    def _no_text(self, like: Text) -> Text:
        """What stands for no text at all, of the shapes of another."""
        return Text(*(jax.device_put(np.zeros(one.shape, one.dtype), self._home) for one in like))

    def _see(self) -> Colours:
        """The map of colours, fitted at the first call."""
        if self._colours is None:
            traits = self.family.traits
            self._colours = Colours.fitted(self._decoded_here, traits.channels, traits.factor)
        return self._colours

    def _encoded(self, text: str) -> Text:
        return _read(self.family, self._kernels, self._weights.encoders, self._tokenize(text))

    def _decoded_here(self, latents: np.ndarray) -> np.ndarray:
        return np.asarray(self._decoded(jax.device_put(latents, self._home)))

    def _decoded(self, latents: Array) -> Array:
        return _decode(self.family, self._kernels, self._weights.autoencoder, latents)

    def _pictures(self, tick: Tick) -> dict[str, Array]:
        """Start to decode what is finished, and is wanted."""
        return {
            moved.id: self._decoded(moved.latents)
            for moved in tick.moved
            if moved.latents is not None and moved.id in self._open and self._open[moved.id].decode
        }

    def _collect(self, started: _Started) -> list[Output]:
        """Wait for a step, and tell what came of it to those who are still here."""
        tick = started.tick
        jax.block_until_ready(tick.done)
        now = time.monotonic()
        # The device starts a step when the one before it is done, which may be after its dispatch.
        self._seconds.append(now - max(started.at, self._collected))
        self._collected = now
        self._rows += tick.rows
        self._padded += tick.computed - tick.rows
        outputs: list[Output] = []
        for moved in tick.moved:
            found = self._open.get(moved.id)
            self._passes += moved.passed
            if found is None:
                continue
            found.passes += moved.passed
            outputs.append(Progressed(moved.id, moved.step, moved.steps))
            if moved.latents is not None:
                outputs.append(self._finish(moved, found, started.pictures.get(moved.id)))
        return outputs

    def _finish(self, moved: Moved, found: _Open, picture: Array | None) -> Finished:
        del self._open[moved.id]
        self._finished += 1
        return Finished(
            moved.id,
            found.job.seed,
            np.asarray(moved.latents)[0],
            None if picture is None else np.asarray(picture)[0],
            found.passes,
            time.monotonic() - found.since,
        )


@partial(jax.jit, static_argnames=("family", "kernels"))
def _read(family: Family, kernels: Kernels, encoders: tuple[Any, ...], tokens: tuple[Array, ...]) -> Text:
    return family.read(encoders, tokens, kernels)


@partial(jax.jit, static_argnames=("family", "kernels"))
def _encode(family: Family, kernels: Kernels, weights: Any, pictures: Array) -> Array:
    return family.encode(weights, pictures, kernels)[0]


@partial(jax.jit, static_argnames=("family", "kernels"))
def _decode(family: Family, kernels: Kernels, weights: Any, latents: Array) -> Array:
    return family.decode(weights, latents, kernels)


@partial(jax.jit, static_argnames=("family", "kernels"))
def _beside(family: Family, kernels: Kernels, weights: Any, pictures: Array, mask: Array) -> Array:
    """What a model that repaints reads: of the pictures with grey where the mask is."""
    masked = family.encode(weights, pictures * (1 - mask) + 0.5 * mask, kernels)
    return family.beside(masked, mask)[0]
