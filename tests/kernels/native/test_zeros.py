"""Zeros that take no memory until they are used."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from slipstream.kernels.native import library
from slipstream.kernels.native.memory import untouched_zeros

assert library.library() is not None
SIZE = 256 << 20


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def test_zeros_of_any_type_and_size() -> None:
    like = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape in ((), (0, 4), (3,), (1000,), (5000, 3), (1024, 1024))
        for dtype in (jnp.float32, jnp.float16, jnp.bfloat16, jnp.int8)
    ]
    dirty = [np.full(1 << 20, 255, np.uint8) for _ in range(8)]
    del dirty  # memory that was used before is likely to come back
    for _ in range(3):
        for one, expected in zip(jax.jit(lambda: untouched_zeros(like))(), like, strict=True):
            assert one.shape == expected.shape and one.dtype == expected.dtype
            assert not np.any(np.asarray(one))


def test_equal_arrays_are_apart_and_untouched() -> None:
    like = {name: jax.ShapeDtypeStruct((SIZE // 4,), jnp.float32) for name in "kv"}
    make = jax.jit(lambda: untouched_zeros(like)).lower().compile()
    before = resident()
    made = jax.block_until_ready(make())
    assert resident() - before < SIZE // 8
    assert made["k"].unsafe_buffer_pointer() != made["v"].unsafe_buffer_pointer()
    assert float(made["k"][SIZE // 8]) == 0
