"""Requests to pictures: texts are encoded, pools step, finished latents are decoded. One step ahead of the device."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Sharding

from slipstream.diffusion.batching import Moved, Pool, Start, Tick
from slipstream.diffusion.config import Tiling
from slipstream.diffusion.pipeline import NO_FIRST_BLOCK, Family, Text, Weights
from slipstream.diffusion.preview import Colours
from slipstream.diffusion.programs import Programs
from slipstream.diffusion.request import Job, Limits, PictureRequest, resolve
from slipstream.diffusion.scheduler_config import SchedulerConfig
from slipstream.diffusion.texts import TextCache
from slipstream.diffusion.tiling import tile_for
from slipstream.errors import Overloaded, RequestError, UnsupportedModel
from slipstream.kernels.low_rank import adapters_in, bound
from slipstream.kernels.ragged import Kernels

Tokenize = Callable[[str], tuple[np.ndarray, ...]]
"""A text as each encoder's token ids, int32 [1, s]."""


@dataclass(frozen=True)
class PoolOptions:
    """How pictures share steps.

    `batches`: how many passes of the model one step may compute, rising; each is compiled when it is first needed, and
    the last bounds what runs at once. `pools`: sizes of pictures that are kept ready; a size more drops the one that
    was idle longest. `sizes`: of how many the compiled functions are kept; one more drops those of the size that was
    asked for longest ago and has no work. `waiting`: most pictures that wait. `text_bytes`: memory for encoded texts.
    `tiling`: whether pictures are decoded in tiles, see `tiling.tile_for`.
    `first_block`: the limit of first-block caching for requests that name none; 0 for none of them; None turns it off,
    and saves the memory for what it keeps of each row.
    """

    batches: tuple[int, ...] = (1, 2, 4)
    pools: int = 4
    sizes: int = 8
    waiting: int = 256
    text_bytes: int = 256 << 20
    tiling: Tiling = "auto"
    first_block: float | None = None


class Progressed(NamedTuple):
    """A picture is so many of its steps on."""

    id: str
    step: int
    steps: int


class Finished(NamedTuple):
    """A picture. `latents` float32 [h, w, c]; `picture` float32 [H, W, 3] in 0..1, None where latents were asked for.

    `passes`: steps in which the model ran, all of it for at least one row. `seconds`: from the request on.
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

    `sizes`: those with compiled functions. `rows_padded`: rows of steps that were computed for nobody. `rows_reused`:
    those that first-block caching took from an earlier step; `steps_short`: steps in which it did so for all rows,
    which is what saves time. `step_seconds`: of steps since the last call.
    """

    running: int
    waiting: int
    pools: int
    sizes: int
    steps: int
    passes: int
    rows_scheduled: int
    rows_padded: int
    rows_reused: int
    steps_short: int
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
    """A step in flight with the pictures that are decoded after it. `at`: when it was dispatched, monotonic seconds.

    `size`: height and width of its pictures.
    """

    tick: Tick
    size: tuple[int, int]
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
        adapters: Sequence[str] = (),
        programs: Callable[[int, int], Programs] | None = None,
    ) -> None:
        """Join parts that are ready; `loading.load` makes them from a checkpoint. `home`: where the weights lie.

        `adapters`: names of those that lie beside the weights, in their order. `programs`: gives the functions of a
        height and width (0 and 0: of the pictures that the map of colours is fitted by), None for new ones.
        """
        self.family = family
        self.limits = limits or Limits()
        self.options = options or PoolOptions()
        self.schedule = schedule
        self.adapters = tuple(adapters)
        self.texts = TextCache(self.options.text_bytes)
        self._of_texts = adapters_in(weights.encoders)
        side = family.traits.side
        if self.options.first_block is not None and family.keeps(side, side) is None:
            raise UnsupportedModel(NO_FIRST_BLOCK)
        self._weights, self._tokenize, self._kernels = weights, tokenize, kernels
        self._home = home or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        self._pools: OrderedDict[tuple[int, int], Pool] = OrderedDict()
        self._programs: OrderedDict[tuple[int, int], Programs] = OrderedDict()
        self._programs_of = programs or (lambda height, width: Programs())
        self._of_areas = self._programs_of(0, 0)
        self._open: dict[str, _Open] = {}
        self._in_flight: deque[_Started] = deque()
        self._steps = self._passes = self._finished = self._rows = self._padded = 0
        self._reused = self._short = 0
        self._seconds: list[float] = []
        self._collected = 0.0
        self._colours: Colours | None = None

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._open or self._in_flight)

    @property
    def weight_bytes(self) -> int:
        """What the weights of all models take on a device."""
        first = next(iter(self._home.device_set))
        held = (leaf.addressable_shards for leaf in jax.tree.leaves(self._weights))
        return sum(shard.data.nbytes for shards in held for shard in shards if shard.device == first)

    @property
    def num_devices(self) -> int:
        """How many devices the weights lie on."""
        return len(self._home.device_set)

    def check(self, request: PictureRequest) -> Job:
        """The request with everything decided. Raises RequestError for one that cannot be served, at no cost."""
        if request.id in self._open:
            raise RequestError(f"there is a request {request.id!r} already", param="id")
        job = resolve(request, self.family, self.schedule, self.limits, self.adapters)
        if job.guidance > 1 and self.options.batches[-1] < 2:
            raise RequestError("true guidance takes two passes a step, and the pool has one row", param="guidance")
        return replace(job, limit=self._limit(request.first_block))

    def _limit(self, asked: float | None) -> float:
        """The limit of first-block caching for a request."""
        default = self.options.first_block
        if asked is None:
            return default or 0.0
        if isinstance(asked, bool) or not isinstance(asked, int | float) or not 0 <= asked <= 1:
            raise RequestError(f"first_block must be a number from 0 to 1, got {asked!r}", param="first_block")
        if asked and default is None:
            raise RequestError("first-block caching was not turned on when the model was loaded", param="first_block")
        return float(asked)

    def add(self, request: PictureRequest, *, decode: bool = True) -> None:
        """Queue a request. Raises RequestError as `check` does, and where too many wait."""
        job = self.check(request)
        if sum(pool.waiting for pool in self._pools.values()) >= self.options.waiting:
            raise Overloaded(f"{self.options.waiting} pictures wait already", retry_after=1)
        text = self.text(request.prompt, job.loras)
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
        for size, pool in self._pools.items():
            if pool.running or pool.waiting:
                tick = pool.step()
                self._in_flight.append(_Started(tick, size, self._pictures(tick, size), time.monotonic()))
                self._steps += 1
                started += 1
        outputs: list[Output] = []
        while len(self._in_flight) > started:
            outputs += self._collect(self._in_flight.popleft())
        self._forget_sizes()
        return outputs

    def text(self, text: str, loras: tuple[float, ...] = ()) -> Text:
        """A text encoded, from memory if it is there. `loras`: how much of each adapter; () for none of any."""
        scales = loras or (0.0,) * len(self.adapters)
        key = text, tuple(scale for i, scale in enumerate(scales) if i in self._of_texts)
        return self.texts.get(key, lambda: self._encoded(text, scales))

    def preview(self, id: str) -> np.ndarray | None:
        """float32 [h, w, 3] in 0..1, as large as the latents: about what the model sees in an unfinished picture.

        None before its first step. The first call of all fits the map of colours, which takes a small decoding.
        """
        found = self._open.get(id)
        latents = None if found is None else found.pool.preview(id)
        if latents is None and found is not None:
            # Its last step has begun, and it has left the pool.
            moved = (moved for started in self._in_flight for moved in started.tick.moved if moved.id == id)
            latents = next((one.latents for one in moved), None)
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
        self._decoded_here(np.zeros((1, *pool.shape), np.float32), self._programs[height, width])
        self._see()

    def counts(self) -> EngineCounts:
        """Gauges and counters as of now."""
        pools = self._pools.values()
        seconds, self._seconds = self._seconds, []
        return EngineCounts(
            running=sum(pool.running for pool in pools),
            waiting=sum(pool.waiting for pool in pools),
            pools=len(pools),
            sizes=len(self._programs),
            steps=self._steps,
            passes=self._passes,
            rows_scheduled=self._rows,
            rows_padded=self._padded,
            rows_reused=self._reused,
            steps_short=self._short,
            finished=self._finished,
            text_hits=self.texts.hits,
            text_misses=self.texts.misses,
            step_seconds=seconds,
        )

    def _pool(self, height: int, width: int, text: Text) -> Pool:
        """The pool of a size, made if there is none. Over the bound, the one that was idle longest goes."""
        key = height, width
        if key not in self._programs:
            self._programs[key] = self._programs_of(height, width)
        self._programs.move_to_end(key)
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
                adapters=len(self.adapters),
                programs=self._programs[key],
                keeps=None if self.options.first_block is None else self.family.keeps(height, width),
            )
        self._pools.move_to_end(key)
        self._forget_sizes(key)
        return self._pools[key]

    def _forget_sizes(self, wanted: tuple[int, int] | None = None) -> None:
        """Over the bound, drop what was compiled for sizes without work, first of all for those long not asked for."""
        over = len(self._programs) - self.options.sizes
        if over <= 0:
            return
        busy = {key for key, pool in self._pools.items() if pool.running or pool.waiting}
        busy |= {started.size for started in self._in_flight}
        for key in [key for key in self._programs if key not in busy and key != wanted][:over]:
            self._pools.pop(key, None)
            self._programs.pop(key).forget()

    def _start(self, job: Job, text: Text) -> Start:
        request, negative = job.request, None
        if job.guidance > 1:
            negative = self._no_text(text) if job.negative is None else self.text(job.negative, job.loras)
        noise = None if request.latents is None else np.moveaxis(request.latents, 0, -1).astype(np.float32)
        if request.picture is None:
            return Start(job, text, negative, noise)
        picture, mask, extra = self._known(request.picture, request.mask, self._programs[job.height, job.width])
        return Start(job, text, negative, noise, picture, mask, extra)

    def _known(
        self, picture: np.ndarray, mask: np.ndarray | None, programs: Programs
    ) -> tuple[Array, np.ndarray | None, Array | None]:
        """A known picture's latents, its mask of latents, and what a model that repaints reads; without the axis b."""
        given, weights = picture[None].astype(np.float32), self._weights.autoencoder
        latents = programs.encode(self.family, self._kernels, weights, given)
        if mask is None:
            return latents, None, None
        whole = mask[None, :, :, None].astype(np.float32)
        if not self.family.traits.extra:
            factor = self.family.traits.factor
            return latents, whole[0, ::factor, ::factor], None
        return latents, None, programs.beside(self.family, self._kernels, weights, given, whole)

    def _no_text(self, like: Text) -> Text:
        """What stands for no text at all, of the shapes of another."""
        return Text(*(jax.device_put(np.zeros(one.shape, one.dtype), self._home) for one in like))

    def _see(self) -> Colours:
        """The map of colours, fitted at the first call."""
        if self._colours is None:
            traits = self.family.traits
            decode = partial(self._decoded_here, programs=self._of_areas)
            self._colours = Colours.fitted(decode, traits.channels, traits.factor)
        return self._colours

    def _encoded(self, text: str, loras: tuple[float, ...]) -> Text:
        scales = np.array([loras], np.float32)
        return read_text(self.family, self._kernels, self._weights.encoders, self._tokenize(text), scales)

    def _decoded_here(self, latents: np.ndarray, programs: Programs) -> np.ndarray:
        return np.asarray(self._decoded(jax.device_put(latents, self._home), programs))

    def _decoded(self, latents: Array, programs: Programs) -> Array:
        _, rows, columns, _ = latents.shape
        factor = self.family.traits.factor
        tile = tile_for(self.options.tiling, rows * factor, columns * factor, factor)
        pictures: Array = programs.decode(self.family, self._kernels, tile, self._weights.autoencoder, latents)
        return pictures

    def _pictures(self, tick: Tick, size: tuple[int, int]) -> dict[str, Array]:
        """Start to decode what is finished, and is wanted."""
        return {
            moved.id: self._decoded(moved.latents, self._programs[size])
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
        reused = np.zeros(tick.rows, bool) if tick.reused is None else np.asarray(tick.reused)[: tick.rows]
        self._reused += int(reused.sum())
        self._short += bool(tick.rows and reused.all())
        outputs: list[Output] = []
        for moved in tick.moved:
            found = self._open.get(moved.id)
            passed = moved.passed and not reused[list(moved.lines)].all()
            self._passes += passed
            if found is None:
                continue
            found.passes += passed
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
def read_text(
    family: Family, kernels: Kernels, encoders: tuple[Any, ...], tokens: tuple[Array, ...], scales: Array
) -> Text:
    """Encode texts, see `Family.read`. `scales` float32 [1, adapters]. Compiled for each shape of `tokens`."""
    return family.read(bound(encoders, scales), tokens, kernels)
