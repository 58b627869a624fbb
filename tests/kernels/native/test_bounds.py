"""Not a byte outside of its arrays is read or written by a product: each array lies between forbidden pages."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from tests.kernels.native.guard_pages import guarded
from tests.kernels.native.products import activations, gated, gemm, isas, matrix, native, rows

from slipstream.kernels.native.pack import PACKINGS


@pytest.mark.parametrize("at_end", [True, False], ids=["end", "begin"])
@pytest.mark.parametrize("kind", PACKINGS)
@pytest.mark.parametrize("isa", isas())
def test_products_stay_within_their_arrays(isa: str, kind: str, at_end: bool) -> None:
    def fenced(array: np.ndarray) -> np.ndarray:
        return guarded(array, at_end=at_end)

    native.slipstream_set_isa(isa.encode())
    try:
        for out, inputs in ((1, 256), (17, 256), (49, 512)):
            m, n = (
                replace(m, packed=fenced(m.packed)) for m in (matrix(kind, out, inputs), matrix(kind, out, inputs, 1))
            )
            norm = fenced(np.ones(inputs, np.float32))
            for count in (1, 2, 7, 13, 29):
                x, residual = fenced(activations(0, count, inputs)), fenced(np.ones((count, out), np.float32))
                y = fenced(np.zeros((count, out), np.float32))
                for exact in (True, False):
                    same = gemm(m, x.copy(), exact=exact, norm=norm.copy(), residual=residual.copy())
                    np.testing.assert_array_equal(gemm(m, x, exact=exact, norm=norm, residual=residual, y=y), same)
                    gated(m, n, x, exact=exact, activation=0, y=y)
                rows(m, fenced(np.arange(count, dtype=np.int32)), 1.0, y=fenced(np.zeros((count, inputs), np.float32)))
    finally:
        native.slipstream_set_isa(None)


@pytest.mark.parametrize("index", [-1, 1024])
def test_the_pages_are_really_forbidden(index: int) -> None:
    program = (
        "import ctypes, numpy; from tests.kernels.native.guard_pages import guarded;"
        f"a = guarded(numpy.zeros(1024, numpy.float32), at_end={index > 0});"
        f"ctypes.c_float.from_address(a.ctypes.data + 4 * {index}).value"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    # By the signal, or by the address sanitizer that caught it.
    assert done.returncode == -signal.SIGSEGV or (done.returncode and b"SEGV" in done.stderr)
