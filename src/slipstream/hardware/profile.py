"""Accelerators that can be rented, as files of numbers: `profiles/NAME.toml`. A target is so many devices of one."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from slipstream.errors import ConfigError


@dataclass(frozen=True)
class Topology:
    """How devices are joined: `name` for XLA's compiler, `host` the chips of one host along each dimension."""

    name: str
    host: tuple[int, ...]


@dataclass(frozen=True)
class Gpu:
    """What XLA's compiler for GPUs is told of one, beside its profile.

    `reported_name`: by the driver. `capability`: the first number of its compute capability. `cores`: streaming
    multiprocessors, at `clock_ghz`. `cache_bytes`: of the cache that they share.
    """

    reported_name: str
    capability: int
    cores: int
    clock_ghz: float
    cache_bytes: int


@dataclass(frozen=True)
class Profile:
    """One kind of device. Bytes, bytes a second, and operations a second, of one device.

    `bandwidth`: of its memory; `link_bandwidth`: to the other devices, over all links together, one direction.
    `topologies`: by number of devices. `gpu`: None for TPUs, which their compiler knows.
    """

    name: str
    platform: Literal["tpu", "cuda"]
    memory_bytes: int
    bandwidth: float
    link_bandwidth: float
    bf16_flops: float
    int8_ops: float
    topologies: Mapping[int, Topology]
    gpu: Gpu | None = None


@dataclass(frozen=True)
class Target:
    """`count` devices of a profile."""

    profile: Profile
    count: int

    @property
    def topology(self) -> Topology:
        """How they are joined."""
        return self.profile.topologies[self.count]


@cache
def targets() -> Mapping[str, Target]:
    """Every target by its name, such as v6e-8."""
    found: dict[str, Target] = {}
    for file in sorted(files("slipstream.hardware").joinpath("profiles").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".toml"):
            profile = _read(file.read_text(encoding="utf-8"))
            found |= {f"{file.name.removesuffix('.toml')}-{n}": Target(profile, n) for n in profile.topologies}
    return found


def target_of(name: str) -> Target:
    """The target of a name. Raises ConfigError, which lists those that there are."""
    if name not in targets():
        raise ConfigError(f"{name} is not a target; there are {', '.join(targets())}")
    return targets()[name]


def _read(text: str) -> Profile:
    fields = tomllib.loads(text)
    topologies = {int(n): Topology(one["name"], tuple(one["host"])) for n, one in fields.pop("topologies").items()}
    gpu = Gpu(**fields.pop("gpu")) if "gpu" in fields else None
    return Profile(**fields, topologies=topologies, gpu=gpu)
