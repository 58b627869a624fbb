"""Pages by jax.experimental.transfer: from device to device, where the platform can; the connection carries the rest.

What is known of that library (jax 0.10) decides how it is used. A pull with another layout than the producer's gives
wrong data without a word: so each shard is an array of one device, in the default layout, pulled as exactly that, and
what has come is checked against a sum that the producer's device computed. A pull of an identifier that is unknown, or
was pulled before, hangs: so identifiers are random and used once, and a thread of its own waits for each pull, which is
left behind at the deadline. Its server knows no secret; who guesses 62 random bits can read the pages of one batch.
"""

from __future__ import annotations

import queue
import secrets
import threading
from collections.abc import Callable
from typing import Any

import jax
import msgspec
import numpy as np
from jax.experimental import transfer
from jax.sharding import SingleDeviceSharding

from slipstream.cluster.transfer.frames import Batch, Broken, Channel, Deadline, Taken
from slipstream.engine.page_io import Blocks, PageIO


class _Shard(msgspec.Struct, frozen=True, array_like=True):
    """A leaf's heads `first` to `first + heads`."""

    leaf: str
    first: int
    heads: int


class _Pull(msgspec.Struct, frozen=True):
    """What `Batch.pull` says: arrays under `uuid` at `address`, one a shard, and a sum of each leaf."""

    address: str
    uuid: int
    shards: list[_Shard]
    sums: dict[str, int]


class JaxTransfer:
    """Both ends: an `offers.Sender` and a `fetches.Receiver`, with one transfer server."""

    def __init__(self, io: PageIO, host: str) -> None:
        """`host`: the address that the server listens at."""
        self._io = io
        self._device = jax.local_devices()[0]
        address = f"[{host}]:0" if ":" in host else f"{host}:0"
        # Without these addresses it moves data by a way that works within one process only.
        self._server: Any = transfer.start_transfer_server(self._device.client, address, [address])
        self._connections: dict[str, Any] = {}
        self._lock = threading.Lock()

    def send(self, channel: Channel, count: int, blocks: Blocks) -> int:
        """Offer a batch's shards, and wait until the other side has them."""
        shards, arrays = [], []
        for name, array in blocks.items():
            for first, data in sorted(_by_head(array).items()):
                shards.append(_Shard(name, first, data.shape[3]))
                arrays.append(data)
        sums = {name: int(value) for name, value in self._io.sums(blocks).items()}
        pull = _Pull(self._server.address(), secrets.randbits(62), shards, sums)
        self._server.await_pull(pull.uuid, arrays)
        channel.say(Batch(count, msgspec.to_builtins(pull)))
        channel.hear_asked(Taken)
        return sum(data.nbytes for data in arrays)

    def receive(self, channel: Channel, batch: Batch) -> Blocks:
        """Pull a batch and check it."""
        try:
            pull = msgspec.convert(batch.pull, _Pull)
            shapes = self._shapes(pull, self._io.width_for(batch.count))
        except (msgspec.ValidationError, KeyError) as error:
            raise Broken("corrupt", f"a batch that cannot be pulled: {error}") from error
        arrays = bounded(lambda: self._pull(pull, shapes), channel.deadline)
        blocks = self._joined(pull, arrays)
        if pull.sums != {name: int(value) for name, value in self._io.sums(blocks).items()}:
            raise Broken("corrupt", "what was pulled is not what was offered")
        channel.received += sum(array.nbytes for array in arrays)
        channel.say(Taken())
        return blocks

    def _shapes(self, pull: _Pull, width: int) -> list[jax.ShapeDtypeStruct]:
        leaves, here = self._io.shape.leaves(width), SingleDeviceSharding(self._device)
        covered = dict.fromkeys(leaves, 0)
        shapes = []
        for shard in pull.shards:
            shape, dtype = leaves[shard.leaf]
            if shard.first != covered[shard.leaf] or shard.heads < 1:
                raise Broken("corrupt", "shards that do not follow each other")
            covered[shard.leaf] += shard.heads
            shapes.append(jax.ShapeDtypeStruct((*shape[:3], shard.heads, *shape[4:]), dtype, sharding=here))
        if any(covered[name] != shape[3] for name, (shape, _) in leaves.items()):
            raise Broken("corrupt", "shards that are not all heads")
        return shapes

    def _pull(self, pull: _Pull, shapes: list[jax.ShapeDtypeStruct]) -> list[jax.Array]:
        with self._lock:
            if pull.address not in self._connections:
                self._connections[pull.address] = self._server.connect(pull.address)
            connection = self._connections[pull.address]
        try:
            arrays: list[jax.Array] = jax.block_until_ready(connection.pull(pull.uuid, shapes))
        except Exception:
            with self._lock:  # another worker may listen there one day
                self._connections.pop(pull.address, None)
            raise
        return arrays

    def _joined(self, pull: _Pull, arrays: list[jax.Array]) -> Blocks:
        """Whole leaves as `scatter` takes them: through the host, unless one device has all."""
        parts: dict[str, list[jax.Array]] = {}
        for shard, array in zip(pull.shards, arrays, strict=True):
            parts.setdefault(shard.leaf, []).append(array)
        if self._io.on_one_device and all(len(part) == 1 for part in parts.values()):
            return {name: part[0] for name, part in parts.items()}
        return self._io.place({name: np.concatenate(list(map(np.asarray, part)), 3) for name, part in parts.items()})


def bounded(work: Callable[[], list[jax.Array]], deadline: Deadline) -> list[jax.Array]:
    """`work()` in a thread that is left behind at the deadline. Raises Broken."""
    done: queue.SimpleQueue[list[jax.Array] | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put(work())
        except Exception as error:
            done.put(error)

    threading.Thread(target=run, name="slipstream-kv-pull", daemon=True).start()
    try:
        result = done.get(timeout=deadline.seconds)
    except queue.Empty:
        raise Broken("late", "a pull did not end") from None
    if isinstance(result, Exception):
        raise Broken("unreachable", f"a pull failed: {result}") from result
    return result


def _by_head(array: jax.Array) -> dict[int, jax.Array]:
    """The shards of a leaf, each once, by the first of their heads."""
    return {shard.index[3].start or 0: shard.data for shard in array.addressable_shards}
