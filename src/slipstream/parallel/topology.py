"""Devices that are not there, for their compiler to compile for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import jax

from slipstream.errors import ConfigError
from slipstream.hardware.profile import Gpu, Profile, Target

# Without these libtpu asks the cloud's metadata server which TPU this machine has, and waits for an answer.
_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # A host's TPUs are one process's, which a file in /tmp keeps; a compiler needs none, and two may run side by side.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}

# What XLA asks the driver of a GPU where there is one (GpuTargetConfigProto). What is written out here is the same for
# compute capabilities 9.0 and 10.0: the CUDA programming guide's table of technical specifications.
_GPU_CONFIG = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  fpus_per_core: 128
  core_count: {gpu.cores}
  clock_rate_ghz: {gpu.clock_ghz}
  l2_cache_size: {gpu.cache_bytes}
  memory_bandwidth: {bandwidth}
  device_memory_size: {profile.memory_bytes}
  cuda_compute_capability {{ major: {gpu.capability} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{gpu.reported_name}"
"""


def devices_of(target: Target) -> Sequence[jax.Device]:
    """The devices of a target. They can be compiled for and hold nothing. Raises ConfigError without the compiler."""
    return _DEVICES[target.profile.platform](target)


def _tpus(target: Target) -> Sequence[jax.Device]:
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


def _gpus(target: Target) -> Sequence[jax.Device]:
    from jax.experimental import topologies

    profile = target.profile
    try:
        topology = topologies.get_topology_desc(
            topology_name=profile.name,
            platform="cuda",
            target_config=gpu_config(profile),
            topology=target.topology.name,
        )
    except NotImplementedError as error:  # JAX knows no such platform.
        raise ConfigError(
            f"compiling for {profile.name} needs XLA's CUDA plugin of jax's version, {jax.__version__}, which runs on "
            "any Linux machine: pip install 'slipstream[gpu-compile]'"
        ) from error
    return list(topology.devices)


def gpu_config(profile: Profile) -> str:
    """What XLA's compiler is told of a GPU, as a protocol buffer's text."""
    gpu = profile.gpu
    assert isinstance(gpu, Gpu), "a profile of a GPU has its numbers"
    return _GPU_CONFIG.format(gpu=gpu, profile=profile, bandwidth=int(profile.bandwidth))


_DEVICES: dict[str, Callable[[Target], Sequence[jax.Device]]] = {"tpu": _tpus, "cuda": _gpus}
