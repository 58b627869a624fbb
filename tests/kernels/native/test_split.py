"""An array taken apart by the native library."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slipstream.kernels.native import library
from slipstream.kernels.native.memory import split_native

assert library.library() is not None
SHAPES = [(3,), (), (0, 5), (2, 4), (1,)]


def test_parts_are_the_numbers_in_order() -> None:
    parts = jax.jit(lambda whole: split_native(whole, SHAPES))(jnp.arange(13, dtype=jnp.int32))
    assert [part.shape for part in parts] == SHAPES
    np.testing.assert_array_equal(np.concatenate([np.ravel(part) for part in parts]), np.arange(13))


@pytest.mark.parametrize("size", [12, 14])
def test_parts_that_do_not_add_up_are_refused(size: int) -> None:
    with pytest.raises(Exception, match="as many numbers as the operand"):
        jax.block_until_ready(jax.jit(lambda whole: split_native(whole, SHAPES))(jnp.zeros(size, jnp.int32)))
