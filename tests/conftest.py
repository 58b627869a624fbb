"""What no test may leave behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

LONG = frozenset(
    {
        "tests/bench/test_step.py::test_a_step_is_taken_apart",
        "tests/engine/test_invariance.py::test_bits_are_equal_in_any_company[gemma-exact]",
        "tests/engine/test_invariance.py::test_bits_are_equal_in_any_company[gemma-fast]",
        "tests/engine/test_invariance.py::test_bits_are_equal_in_any_company[gemma-int8]",
        "tests/engine/test_kv_types.py::test_log_probabilities_are_near_those_of_float32[reference-bfloat16]",
        "tests/engine/test_invariance.py::test_bits_are_equal_in_any_company[moe-exact]",
        "tests/engine/test_kv_types.py::test_log_probabilities_are_near_those_of_float32[reference-float16]",
        "tests/engine/test_kv_types.py::test_log_probabilities_are_near_those_of_float32[reference-int8]",
        "tests/engine/test_moe.py::test_experts_stay_in_the_blocks_of_their_file",
        "tests/engine/test_moe.py::test_gpt_oss_as_it_is_published",
        "tests/engine/test_moe.py::test_replies_are_those_of_the_full_forward[deepseek_v3-cpu]",
        "tests/engine/test_moe.py::test_replies_are_those_of_the_full_forward[mixtral-reference]",
        "tests/engine/test_native.py::test_floats_are_multiplied_as_they_are_stored",
        "tests/engine/test_quantization.py::test_weights_are_rounded_when_they_are_loaded",
        "tests/models/test_real.py::test_top_logits_and_greedy_tokens[reference-gemma3-270m]",
    }
)
"""Tests of 20 s and more that continuous integration leaves to people, beside those marked where they stand."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what LONG names."""
    for item in items:
        if item.nodeid in LONG:
            item.add_marker(pytest.mark.long)


@pytest.fixture(autouse=True)
def xlas_cache_off_again() -> Iterator[None]:
    """XLA's cache on disk, turned on by a command under test, is off for the next test: what comes out of it is another
    program's, and the engine keeps no such step. The plain half is tested without JAX, so it is not imported here.
    """
    yield
    jax = sys.modules.get("jax")
    if jax is None or not jax.config.values["jax_compilation_cache_dir"]:
        return
    from jax.experimental.compilation_cache import compilation_cache

    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
