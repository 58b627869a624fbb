"""`slipstream env`: what was found on this machine. Paste its output into a bug report."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

from cyclopts import Parameter

from slipstream.cli.sizes import format_bytes
from slipstream.hardware.host import Host, read_host

PACKAGES = ("jax", "jaxlib", "libtpu", "numpy", "tokenizers", "safetensors", "starlette", "uvicorn", "pyzmq", "msgspec")
"""Versions that decide how a server behaves. A package that is not installed is left out."""


@dataclass(frozen=True, kw_only=True)
class EnvOptions:
    """Settings of `slipstream env`.

    Parameters
    ----------
    json
        Print one JSON object.
    """

    json: bool = False


@dataclass(frozen=True)
class Device:
    """A device that JAX sees. `memory_bytes`: what it may use; None where JAX does not say (CPU)."""

    id: int
    platform: str
    kind: str
    memory_bytes: int | None


@dataclass(frozen=True)
class Environment:
    """Everything that `env` prints. `device_error`: why JAX found no device. `kernels`: of the native CPU kernels."""

    slipstream: str
    python: str
    executable: str
    system: str
    host: Host
    devices: tuple[Device, ...]
    device_error: str | None
    kernels: str
    versions: dict[str, str]


def env(*, options: Annotated[EnvOptions, Parameter(name="*")] = EnvOptions()) -> None:
    """Show what was found: devices, memory, CPU limits and versions."""
    found = find()
    if options.json:
        import orjson

        found_dict = asdict(found)
        found_dict["host"]["cpus"] = found.host.cpus
        print(orjson.dumps(found_dict, option=orjson.OPT_INDENT_2).decode())
        return
    for name, value in _rows(found):
        print(f"{name:<12} {value}")


def find() -> Environment:
    """Look. Starts JAX, which may take a few seconds on an accelerator."""
    from slipstream.kernels.native import library  # loads JAX, as looking for devices does

    devices, error = _devices()
    return Environment(
        slipstream=version("slipstream"),
        python=platform.python_version(),
        executable=sys.executable,
        system=platform.platform(),
        host=read_host(),
        devices=devices,
        device_error=error,
        kernels=library.description(),
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _devices() -> tuple[tuple[Device, ...], str | None]:
    try:
        import jax

        found = jax.devices()
    except (ImportError, RuntimeError) as error:
        return (), f"{type(error).__name__}: {error}"
    rows = [Device(d.id, d.platform, d.device_kind, (d.memory_stats() or {}).get("bytes_limit")) for d in found]
    return tuple(rows), None


def _rows(found: Environment) -> list[tuple[str, str]]:
    host = found.host
    quota = "no limit" if host.cpu_quota is None else f"{host.cpu_quota:g} CPUs"
    rows = [
        ("slipstream", found.slipstream),
        ("python", f"{found.python}  {found.executable}"),
        ("system", found.system),
        ("cpu", host.cpu_model),
        ("", " ".join(host.isa) or "no instruction set of note"),
        ("cpus", f"{host.cpus} to use ({host.affinity} in the process's mask; cgroup quota: {quota})"),
        ("memory", f"{format_bytes(host.memory_available)} available of {format_bytes(host.memory_total)}"),
    ]
    for device in found.devices:
        memory = "" if device.memory_bytes is None else f"  {format_bytes(device.memory_bytes)}"
        rows.append(("device", f"{device.platform}:{device.id}  {device.kind}{memory}"))
    if found.device_error is not None:
        rows.append(("device", f"none: {found.device_error}"))
    return [*rows, ("kernels", found.kernels), *found.versions.items()]
