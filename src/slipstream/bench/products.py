"""Times the native products alone: `python -m slipstream.bench.products`.

For one row the rate is GB of packed weights a second, beside the rate at which the same threads read plain memory in
the same run. For more rows it is GOP a second, two for each weight and row. Weights are cycled through more memory than
the caches hold, as in a model; each number is the median of several passes.
"""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slipstream.kernels.native.library import library
from slipstream.kernels.native.pack import PACKINGS, packed_bytes

SHAPES = (("qkv", 960, 576), ("o", 576, 576), ("gate+up", 3072, 576), ("down", 576, 1536), ("head", 49152, 576))
ROWS = (1, 8, 32, 128, 512)
_FOOTPRINT = 192 << 20
_PASSES = 7


def _pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _median(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_PASSES + 1):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def _weights(kind: str, out: int, inputs: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Packed weights of random bits, enough of them to leave the caches. Their values do not matter to the time."""
    size = packed_bytes(kind, out, inputs)
    return rng.integers(0, 64, (max(2, _FOOTPRINT // size), size), np.uint8)


def _time(
    native: ctypes.CDLL, kind: str, out: int, inputs: int, rows: int, exact: bool, weights: NDArray[Any]
) -> float:
    """Seconds for one product."""
    x = np.random.default_rng(0).standard_normal((rows, inputs)).astype(np.float32)
    y = np.empty((rows, out), np.float32)
    count = ctypes.c_int64(max(2, len(weights) * 8 // (8 + rows)))
    size = ctypes.c_int64
    call = (PACKINGS[kind].code, size(out), size(inputs), _pointer(weights), count, _pointer(x), size(rows))
    return _median(lambda: native.slipstream_gemm_each(*call, int(exact), _pointer(y))) / count.value


def main(kinds: list[str]) -> None:
    """Print the rates for weights of `kinds`, or else of those of the default model."""
    native = library()
    if native is None:
        raise SystemExit("build the native library first (see CONTRIBUTING.md)")
    native.slipstream_isa.restype = ctypes.c_char_p
    rng = np.random.default_rng(0)
    memory = rng.integers(0, 255, 1 << 30, np.uint8)
    seconds = _median(lambda: native.slipstream_read_all(_pointer(memory), ctypes.c_int64(memory.nbytes)))
    speed = memory.nbytes / seconds / 1e9
    print(f"{native.slipstream_isa().decode()}, {native.slipstream_threads()} threads, read {speed:.1f} GB/s")
    del memory
    for kind in kinds or ["q4_1", "q8_0"]:
        for name, out, inputs in SHAPES:
            weights = _weights(kind, out, inputs, rng)
            for exact in (True, False):
                cells = []
                for rows in ROWS:
                    took = _time(native, kind, out, inputs, rows, exact, weights)
                    rate = packed_bytes(kind, out, inputs) / took / 1e9
                    operations = 2 * out * inputs * rows / took / 1e9
                    cells.append(f"{rate:6.1f} GB/s" if rows == 1 else f"M={rows} {operations:5.0f}")
                print(f"{kind} {name:8} {'exact' if exact else 'fast '} {'  '.join(cells)} GOP/s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
