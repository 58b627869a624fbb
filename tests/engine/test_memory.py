"""What a KV cache takes, and which type it has."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from slipstream.engine.memory import KVShape, kv_dtype
from slipstream.kernels.ragged import Kernels

F32, F16, BF16, INT8 = (np.dtype(jax.numpy.dtype(name)) for name in ("float32", "float16", "bfloat16", "int8"))


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [F32, F16, BF16, INT8])
def test_a_page_takes_what_the_planner_says(dtype: np.dtype, kernels: Kernels) -> None:
    kv = KVShape(layers=3, kv_heads=2, head_dim=32, page_size=16, dtype=dtype)
    leaves = jax.tree.leaves(kv.cache(5, kernels))
    assert sum(leaf.nbytes for leaf in leaves) == 5 * kv.bytes_per_page
    assert len(leaves) == (4 if dtype == INT8 else 2)


def test_the_type_of_the_cache() -> None:
    assert kv_dtype("auto", F32, "cpu") == F16
    assert kv_dtype("auto", BF16, "tpu") == BF16
    assert kv_dtype("bfloat16", F32, "cpu") == BF16
    assert kv_dtype("int8", F32, "cpu") == INT8
