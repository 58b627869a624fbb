"""What this machine could do at most, measured now: the figures that kernels are compared with."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from slipstream.errors import ConfigError
from slipstream.kernels.native import library

PASSES = 5
_READ_BYTES = 1 << 30  # far more than any cache
_CHUNKS, _ROUNDS = 32, 200_000


@dataclass(frozen=True)
class Ceilings:
    """`read`: bytes a second from memory. `integers`, `floats`: operations a second in registers, two for each product,
    of bytes summed in 32 bits and of float32. All with the native pool's threads and instruction set.
    """

    read: float
    integers: float
    floats: float


def native_library() -> ctypes.CDLL:
    """The library. Raises ConfigError with the remedy where there is none."""
    found = library.library()
    if found is None:
        raise ConfigError(str(library.reason()))
    return found


def measure() -> Ceilings:
    """Medians of `PASSES`; about three seconds."""
    native = native_library()
    multiply = native.slipstream_multiply_in_registers
    multiply.restype = ctypes.c_int64
    size = ctypes.c_int64(_READ_BYTES)
    memory = np.ones(_READ_BYTES, np.uint8)  # written, so that it is there: pages of zeros are all one page
    address = ctypes.c_void_p(memory.ctypes.data)

    def rounds(floats: int) -> int:
        done: int = multiply(floats, ctypes.c_int64(_CHUNKS), ctypes.c_int64(_ROUNDS))
        return done

    def read() -> int:
        native.slipstream_read_all(address, size)
        return _READ_BYTES

    return Ceilings(_rate(read), _rate(lambda: rounds(0)), _rate(lambda: rounds(1)))


def _rate(run: Callable[[], int]) -> float:
    """Units a second, the median of several runs after one that is not counted."""
    run()
    rates = []
    for _ in range(PASSES):
        start = time.perf_counter()
        done = run()
        rates.append(done / (time.perf_counter() - start))
    return statistics.median(rates)
