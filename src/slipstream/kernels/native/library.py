"""Finds the compiled library, and registers its handlers with XLA once."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.resources import files
from pathlib import Path

import jax

REMEDY = (
    "install a C++17 compiler (on Debian or Ubuntu: apt-get install g++) and install Slipstream again with "
    "pip install --force-reinstall --no-deps"
)


def _path() -> Path:
    # Not library.so: Python would take that for the module of this file.
    return Path(str(files("slipstream.kernels.native").joinpath("libslipstream.so")))


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library with its FFI targets registered; None where there is none, or it does not load."""
    try:
        found = ctypes.CDLL(str(_path()))
    except OSError:
        return None
    for name in _targets(found):
        handler = jax.ffi.pycapsule(getattr(found, name))
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    return found


def reason() -> str | None:
    """Why the native kernels are not in use, with the remedy; None if they are there."""
    if library() is not None:
        return None
    return f"the native CPU kernels were not built, so XLA's own, several times slower, are used: {REMEDY}"


def _targets(found: ctypes.CDLL) -> list[str]:
    """The names of the library's handlers, which it lists itself."""
    listing = found.slipstream_targets
    listing.restype = ctypes.c_char_p
    names: bytes = listing()
    return names.decode().split()
