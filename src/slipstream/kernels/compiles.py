"""Counts compilations and keeps their results on disk."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import jax

from slipstream.hardware.disk import cache_folder
from slipstream.hardware.store import Store

logger = logging.getLogger(__name__)

_MOST_BYTES = {"steps": 2**30, "weights": 32 * 2**30}
_BACKEND_COMPILE = "/jax/core/compile/backend_compile_duration"


class CompileCounter:
    """Compilations of this process. After `mark_ready` each one is a fault: some shape was not warmed up."""

    def __init__(self) -> None:
        self.total = 0
        self.after_ready = 0
        self._ready = False
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def mark_ready(self) -> None:
        """From now on compilations count as late."""
        self._ready = True

    def close(self) -> None:
        """Stop counting."""
        jax.monitoring.unregister_event_duration_listener(self._on_event)

    def _on_event(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _BACKEND_COMPILE:
            self.total += 1
            self.after_ready += self._ready


def use_compile_cache(folder: str | None) -> None:
    """Turn on XLA's cache in `folder`; None: under the user's cache folder; an empty string: leave it off.

    For programs that compile functions of their own. An engine has `StepCache`, and what comes out of this one cannot
    be kept there.
    """
    if folder == "":
        return
    path = Path(folder) if folder else cache_folder() / "compiled"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        logger.warning("no compiled step can be kept in %s (%s): each start compiles", path, error)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    # The thresholds spare disks from thousands of tiny entries; a server compiles a dozen steps, all worth keeping.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def store_of(folder: str | None, kind: Literal["steps", "weights"]) -> Store | None:
    """Where results of a kind are kept: under `folder`; None: the user's cache folder; an empty string: nowhere."""
    if folder == "":
        return None
    return Store((Path(folder) if folder else cache_folder()) / kind, _MOST_BYTES[kind])


def xlas_cache_is_on() -> bool:
    """Whether a result of compiling may have come out of XLA's own cache: turned on here, or by JAX's settings."""
    return bool(jax.config.values["jax_enable_compilation_cache"] and jax.config.values["jax_compilation_cache_dir"])
