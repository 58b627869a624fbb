"""Devices from flags: replicas of a model, and the mesh that one of them is sharded over."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from slipstream.errors import ConfigError

KV = "kv"
GROUP = "group"
TENSOR = (KV, GROUP)
"""The axes of a mesh. Key/value heads lie on the first and are repeated along the second, everything else lies on both.

With as many heads as devices or more, or a multiple of them, the second axis has one device.
"""


def split(tp: int, kv_heads: int) -> tuple[int, int] | None:
    """The sizes of the mesh's axes for `tp` devices; None where one of tp and kv_heads is no multiple of the other.

    So each device has whole key/value heads, and among them those that its query heads read.
    """
    kv = gcd(tp, kv_heads)
    return (kv, tp // kv) if kv in (tp, kv_heads) else None


def make_mesh(devices: Sequence[jax.Device], kv_heads: int) -> Mesh:
    """The mesh of one replica on all of `devices`, which may belong to a topology that can hold no data.

    Raises ValueError where `split` gives None: `fit.check_fit` says so to people before.
    """
    sizes = split(len(devices), kv_heads)
    if sizes is None:
        raise ValueError(f"{kv_heads} key/value heads do not fit {len(devices)} devices")
    return Mesh(np.asarray(devices, object).reshape(sizes), TENSOR, axis_types=(AxisType.Auto,) * len(TENSOR))


def replicas(devices: Sequence[jax.Device], tp: int, dp: int) -> list[list[jax.Device]]:
    """`dp` groups of `tp` neighbouring devices. Raises ConfigError where there are not so many devices."""
    asked = tp * dp
    if asked > len(devices):
        kind = devices[0].platform
        hint = f"; XLA_FLAGS=--xla_force_host_platform_device_count={asked} makes as many of a CPU" * (kind == "cpu")
        needs = f"--tp {tp} and --dp {dp} need {tp} x {dp} = {asked}" if dp > 1 else f"--tp {tp} needs {tp}"
        raise ConfigError(
            f"{needs} devices, there "
            f"{'is' if len(devices) == 1 else 'are'} {len(devices)} ({kind}): lower {'them' if dp > 1 else 'it'}{hint}"
        )
    return [list(devices[first : first + tp]) for first in range(0, asked, tp)]


def shared(devices: Sequence[jax.Device], tp: int, processes: int) -> list[jax.Device]:
    """`tp` devices of several processes, as many of each, those of one process side by side.

    Raises ConfigError where tp is no multiple of `processes`, or one has not so many.
    """
    if tp % processes:
        raise ConfigError(f"--tp {tp} cannot be shared by {processes} processes evenly: choose a multiple of that")
    each = tp // processes
    owned = [[device for device in devices if device.process_index == rank] for rank in range(processes)]
    for rank, own in enumerate(owned):
        if len(own) < each:
            raise ConfigError(
                f"--tp {tp} on {processes} processes needs {each} devices of each, process {rank} has {len(own)}"
            )
    return [device for own in owned for device in own[:each]]
