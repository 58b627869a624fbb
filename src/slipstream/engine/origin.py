"""What compiled steps and packed weights follow from besides the model and the settings: code and machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax

from slipstream.hardware.host import cpu_features, read_host
from slipstream.kernels.native import library

_PACKAGES = ("checkpoint", "engine", "kernels", "models", "parallel", "quant", "spec")
# Settings of JAX that say where things are kept or what is printed; all others may change what is compiled.
_IRRELEVANT = ("cache", "log", "debug", "dump", "trace", "traceback", "guard")


@cache
def code() -> str:
    """A hash of the sources that decide what is compiled and how weights are packed.

    The native library is no part of it: a compiled step calls its handlers by name.
    """
    digest = blake2b(digest_size=16)
    package = Path(str(files("slipstream")))
    sources = sorted(path for name in _PACKAGES for path in (package / name).rglob("*.py"))
    for path in sources:
        digest.update(f"{path.relative_to(package)}\0".encode())
        digest.update(blake2b(path.read_bytes()).digest())
    return digest.hexdigest()


def _matters(variable: str) -> bool:
    return variable.startswith(("XLA_", "JAX_")) or variable == library.XLA_THREADS_VARIABLE


def packing_facts() -> dict[str, Any]:
    """What the bytes of packed weights follow from."""
    path = library.path()
    built = blake2b(path.read_bytes(), digest_size=16).hexdigest() if path.is_file() else None
    isa = library.description().partition(",")[0]
    return {"code": code(), "library": built, "isa": isa, "byteorder": sys.byteorder}


def compile_facts(devices: Sequence[jax.Device]) -> dict[str, Any]:
    """What a compiled step follows from, besides its own function and arguments."""
    host, device = read_host(), devices[0]
    settings = {
        name: str(value) for name, value in jax.config.values.items() if not any(word in name for word in _IRRELEVANT)
    }
    return {
        "code": code(),
        "python": sys.version_info[:3],
        "versions": {name: version(name) for name in ("jax", "jaxlib")},
        "platform": [device.platform, device.device_kind, device.client.platform_version],
        "devices": [jax.device_count(), jax.process_index(), *(device.id for device in devices)],
        "cpu": [host.cpu_model, host.cpus, cpu_features()],
        "environment": {name: os.environ[name] for name in sorted(os.environ) if _matters(name)},
        "settings": settings,
    }
