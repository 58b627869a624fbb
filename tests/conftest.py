"""What no test may leave behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


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
