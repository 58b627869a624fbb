"""Prints how fast this machine's memory is read by Slipstream's threads: GB/s, the best of several passes."""

from __future__ import annotations

import ctypes
import sys
import time

import numpy as np

from slipstream.kernels.native.library import library, reason

_BYTES = 1 << 30  # far over what caches hold
_PASSES = 32


def main() -> int:
    """The exit status: 1 where the native library is not there."""
    native = library()
    if native is None:
        print(reason(), file=sys.stderr)
        return 1
    memory = np.random.default_rng(0).integers(0, 255, _BYTES, np.uint8)
    seconds = []
    for _ in range(_PASSES):
        start = time.perf_counter()
        native.slipstream_read_all(ctypes.c_void_p(memory.ctypes.data), ctypes.c_int64(memory.nbytes))
        seconds.append(time.perf_counter() - start)
    print(_BYTES / min(seconds) / 1e9)
    return 0


if __name__ == "__main__":
    sys.exit(main())
