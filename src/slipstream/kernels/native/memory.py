"""Arrays whose memory is taken from the system only where it is used, and arrays taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def untouched_zeros(like: Any) -> Any:
    """A tree of zeros with the shapes and types of `like`; to be used inside jit, on a CPU with the native library.

    One call makes all of them: XLA would take two calls that look the same for one, and copy its result.
    """
    leaves, tree = jax.tree.flatten(like)
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    return jax.tree.unflatten(tree, jax.ffi.ffi_call("slipstream_ffi_zeros", shapes)())


def split_native(whole: Array, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """Arrays of these shapes from the numbers of `whole` i32[n], in order; together they have n."""
    parts = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes]
    return list(jax.ffi.ffi_call("slipstream_ffi_split", parts)(whole))
