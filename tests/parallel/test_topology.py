"""What XLA's compilers are told of devices that are not there, and what people are told without those compilers."""

from __future__ import annotations

import re

import pytest
from jax.experimental import topologies

from slipstream.errors import ConfigError
from slipstream.hardware.profile import target_of
from slipstream.parallel import topology


def test_a_gpu_is_described_by_its_profile() -> None:
    text = topology.gpu_config(target_of("h100-8").profile)
    found = dict(re.findall(r"(\w+): (\S+)", text))
    assert (found["core_count"], found["device_memory_size"]) == ("132", "84942979072")
    assert found["memory_bandwidth"] == "3352000000000"
    assert text.count("{") == text.count("}") == 4
    assert 'device_description_str: "NVIDIA H100 80GB HBM3"' in text


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(**_: object) -> None:
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(topologies, "get_topology_desc", unknown)
    with pytest.raises(ConfigError, match=r"CUDA plugin of jax's version.*slipstream\[gpu-compile\]"):
        topology.devices_of(target_of("h200-1"))
    monkeypatch.setattr(topology, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"TPU compiler.*slipstream\[tpu-compile\]"):
        topology.devices_of(target_of("v6e-1"))
