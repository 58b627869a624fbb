"""Devices that are not there, for their compiler to compile for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec

import jax

from slipstream.errors import ConfigError
from slipstream.hardware.profile import Target

# Without these libtpu asks the cloud's metadata server which TPU this machine has, and waits for an answer.
_ALONE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost"}


def devices_of(target: Target) -> Sequence[jax.Device]:
    """The devices of a target. They can be compiled for and hold nothing. Raises ConfigError without the compiler."""
    from jax.experimental import topologies

    if find_spec("libtpu") is None:
        raise ConfigError(
            f"compiling for {target.profile.name} needs XLA's TPU compiler, which runs on any Linux machine: "
            "pip install 'slipstream[tpu-compile]'"
        )
    for name, value in _ALONE.items():
        os.environ.setdefault(name, value)
    topology = topologies.get_topology_desc(
        topology_name=target.topology.name, platform="tpu", chips_per_host_bounds=target.topology.host
    )
    return list(topology.devices)
