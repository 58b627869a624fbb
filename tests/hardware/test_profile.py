"""Targets by name, from the profiles' files."""

from __future__ import annotations

import pytest

from slipstream.errors import ConfigError
from slipstream.hardware.profile import target_of, targets


def test_targets_and_their_numbers() -> None:
    assert {"v5e-1", "v5e-4", "v5e-8", "v6e-1", "v6e-4", "v6e-8", "tpu7x-8"} <= set(targets())
    assert {f"{gpu}-{n}" for gpu in ("h100", "h200", "b200") for n in (1, 2, 4, 8)} <= set(targets())
    target = target_of("v6e-8")
    assert (target.count, target.topology.name, target.topology.host) == (8, "v6e:2x4", (2, 4, 1))
    for name, target in targets().items():
        profile = target.profile
        assert profile.memory_bytes > 2**33, name
        assert profile.bf16_flops > profile.bandwidth > profile.link_bandwidth > 1e11, name
        assert (profile.gpu is not None) == (profile.platform == "cuda"), name


def test_an_unknown_target_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"v6e-5 is not a target; there are .*v6e-4, v6e-8"):
        target_of("v6e-5")
