"""Arrays on a mesh, filled tensor by tensor: of each, a device's part goes from the mapped file to that device."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from slipstream.checkpoint.loading import empty
from slipstream.parallel.spread import Spread

AT_ONCE = 2**26
"""Bytes of an array that is put together on the host. Of a larger one the host holds a part of a tensor at a time."""
CHUNK = 2**25
"""Bytes of a mapped file that are read before their memory is given back to the system."""
ROWS = 64
"""Rows that are copied at once. Where that transposes them, so many stay in a processor's cache meanwhile."""

Region = tuple[tuple[int, int], ...]
"""First index and end along each axis: the part of an array that a device holds."""


@dataclass
class Tally:
    """`bytes`: of stored tensors that this process has read for its own devices."""

    bytes: int = 0


class Assembly:
    """One array in the making.

    `shape` begins with `stack` axes over which tensors are stacked. What tensors do not fill at the ends of the other
    axes is zeros. `add` each tensor once, then `finish`. What is read of them is added to `tally`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        stack: int,
        dtype: np.dtype,
        sharding: NamedSharding,
        tally: Tally | None = None,
    ) -> None:
        self._tally = tally or Tally()
        self._shape, self._stack, self._dtype, self._sharding = tuple(shape), stack, dtype, sharding
        self._devices: dict[Region, list[jax.Device]] = {}
        for device, index in sharding.addressable_devices_indices_map(self._shape).items():
            region = tuple(part.indices(size)[:2] for part, size in zip(index or (), self._shape, strict=True))
            self._devices.setdefault(region, []).append(device)
        self._parts: dict[jax.Device, Array] = {}
        self._hosts: dict[Region, np.ndarray] = {}
        if not stack:
            return
        if prod(self._shape) * dtype.itemsize <= AT_ONCE:
            self._hosts = {region: empty(_shape_of(region), dtype) for region in self._devices}
            return
        for region, devices in self._devices.items():
            self._parts |= {device: jnp.zeros(_shape_of(region), dtype, device=device) for device in devices}

    @classmethod
    def of(
        cls, spread: Spread, stack: int, shape: Sequence[int], dtype: np.dtype, *, tally: Tally | None = None
    ) -> Assembly:
        """For an array that the model has with `shape`."""
        filled = spread.filled(shape)
        return cls(filled, stack, np.dtype(dtype), spread.sharding(filled), tally)

    def add(self, at: tuple[int, ...], tensor: np.ndarray) -> None:
        """Put a tensor, best a view of a mapped file, in its place along the stacked axes."""
        for region, devices in self._devices.items():
            stacked, rest = region[: self._stack], region[self._stack :]
            if not all(first <= i < end for i, (first, end) in zip(at, stacked, strict=True)):
                continue
            place = tuple(i - first for i, (first, _) in zip(at, stacked, strict=True))
            part = tensor[tuple(slice(*ends) for ends in rest)]
            self._tally.bytes += part.nbytes
            if region in self._hosts:
                copy(self._hosts[region][place], part)
                continue
            host = empty(_shape_of(rest), self._dtype)
            copy(host, part)
            for device in devices:
                sent = jax.device_put(host, device)
                self._parts[device] = _put(self._parts[device], sent, place) if self._stack else sent
            jax.block_until_ready([self._parts[device] for device in devices])  # The host's copy can go.

    def finish(self) -> Array:
        """The array."""
        for region, host in self._hosts.items():
            self._parts |= {device: jax.device_put(host, device) for device in self._devices[region]}
        parts = [self._parts[device] for devices in self._devices.values() for device in devices]
        return jax.make_array_from_single_device_arrays(self._shape, self._sharding, parts)


class OnDevice:
    """The same on one device, where the host puts all of the array together."""

    def __init__(self, device: jax.Device, shape: Sequence[int], dtype: np.dtype) -> None:
        self._device, self._host = device, np.empty(shape, dtype)

    def add(self, at: tuple[int, ...], tensor: np.ndarray) -> None:
        """Put a tensor in its place."""
        self._host[at] = tensor

    def finish(self) -> Array:
        """The array."""
        array: Array = jax.device_put(self._host, self._device)
        return array


def copy(target: np.ndarray, values: np.ndarray) -> None:
    """Copy and cast `values` into the first indices of `target`, whose others become zeros.

    What `values` shows of a mapped file is read in the file's order, and its memory given back as it goes.
    """
    if target.shape != values.shape:
        target[...] = 0
        target = target[tuple(map(slice, values.shape))]
    if not values.ndim:
        target[...] = values
        return
    axis = int(np.argmax(values.strides))
    target, values = np.moveaxis(target, axis, 0), np.moveaxis(values, axis, 0)
    read = 0
    for first in range(0, len(values), ROWS):
        part = values[first : first + ROWS]
        target[first : first + ROWS] = part
        read += part.nbytes
        if read >= CHUNK:
            forget(values)
            read = 0
    forget(values)


def forget(array: np.ndarray) -> None:
    """Give back the memory of the mapped file that `array` is a view of, if it is one; it can be read again."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)


def _shape_of(region: Region) -> tuple[int, ...]:
    return tuple(end - first for first, end in region)


def _write(whole: Array, part: Array, place: Sequence[Array]) -> Array:
    start = (*place, *(jnp.int32(0) for _ in part.shape))
    return jax.lax.dynamic_update_slice(whole, part.reshape((1,) * len(place) + part.shape), start)


_jitted = jax.jit(_write, donate_argnums=0)


def _put(whole: Array, part: Array, place: tuple[int, ...]) -> Array:
    """`whole`, which is given up, with `part` in its place along the first axes."""
    put: Array = _jitted(whole, part, [np.int32(i) for i in place])
    return put
