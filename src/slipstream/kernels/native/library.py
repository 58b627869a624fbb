"""Finds the compiled library, and registers its handlers with XLA once."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.resources import files
from pathlib import Path

import jax

REMEDY = (
    "install a C++17 compiler (on Debian or Ubuntu: apt-get install g++) and install Slipstream again with "
    "pip install --force-reinstall --no-deps"
)

LIBRARY_VARIABLE = "SLIPSTREAM_LIBRARY"
"""Environment variable with the path of another build of the library, such as one with sanitizers."""

XLA_THREADS_VARIABLE = "NPROC"
"""Environment variable from which XLA takes the size of its thread pool on a CPU, when it starts."""

ACCELERATOR_FILES = ("nvidia[0-9]*", "kfd", "dxg", "accel*", "vfio/[0-9]*")
"""Files under /dev that drivers of GPUs (NVIDIA, AMD, those of WSL) and of TPUs make."""

TARGETS = (
    "slipstream_ffi_attend",
    "slipstream_ffi_batched_attention",
    "slipstream_ffi_convolution",
    "slipstream_ffi_gelu",
    "slipstream_ffi_gemm",
    "slipstream_ffi_group_norm",
    "slipstream_ffi_mlp",
    "slipstream_ffi_rows",
    "slipstream_ffi_sample",
    "slipstream_ffi_split",
    "slipstream_ffi_zeros",
)
"""The handlers, registered with XLA under their own names."""


def path() -> Path:
    """Where the compiled library is, or would be."""
    chosen = os.environ.get(LIBRARY_VARIABLE)
    if chosen:
        return Path(chosen)
    # Not library.so: Python would take that for the module of this file.
    return Path(str(files("slipstream.kernels.native").joinpath("libslipstream.so")))


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library with its FFI targets registered; None where there is none, or it does not load."""
    try:
        found = ctypes.CDLL(str(path()))
    except OSError:
        return None
    for name in TARGETS:
        handler = jax.ffi.pycapsule(getattr(found, name))
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    return found


def use_threads(count: int | None, *, native: bool = True) -> None:
    """Compute on `count` threads of this process: the native kernels from now on, XLA's own code if it has not run yet.

    None: as many as the process may use, by its mask of processors and its control groups' limits. `native`: whether
    the native kernels do the work, where they are there. XLA's own code then gets one thread: little is left for it,
    and of several one would run each step, which another has to wake first.
    """
    found = library()
    if found is not None:
        found.slipstream_set_threads(count or 0)
    if found is not None and native and not _accelerator_possible():
        os.environ.setdefault(XLA_THREADS_VARIABLE, "1")
    elif count is not None:
        os.environ[XLA_THREADS_VARIABLE] = str(count)
    elif found is not None:  # XLA knows the mask, but not the control groups
        os.environ.setdefault(XLA_THREADS_VARIABLE, str(found.slipstream_available_processors()))


def _accelerator_possible() -> bool:
    """Whether JAX may choose another device than the CPU, as far as can be told before it looks.

    Then XLA needs its threads: it compiles for a GPU or a TPU on all of them, and the native kernels have no work.
    """
    if platforms := jax.config.values["jax_platforms"]:
        return bool(platforms != "cpu")
    return any(any(Path("/dev").glob(pattern)) for pattern in ACCELERATOR_FILES)


def reason() -> str | None:
    """Why the native kernels are not in use, with the remedy; None if they are there."""
    if library() is not None:
        return None
    return f"the native CPU kernels were not built, so XLA's own, which are slower, are used: {REMEDY}"


def description() -> str:
    """What a person is told of the native kernels: instruction set and threads, or why there are none."""
    found = library()
    if found is None:
        return f"none: {reason()}"
    found.slipstream_isa.restype = ctypes.c_char_p
    isa: bytes = found.slipstream_isa()
    return f"{isa.decode()}, {found.slipstream_threads()} threads"
