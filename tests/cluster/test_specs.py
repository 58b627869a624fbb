"""What flags make of workers."""

from __future__ import annotations

from typing import Any

import pytest

from slipstream.cluster import fleet
from slipstream.cluster.fleet import FleetConfig, changed, specs
from slipstream.engine.config import EngineConfig
from slipstream.errors import ConfigError


@pytest.mark.parametrize(
    ("flags", "roles"),
    [
        ({}, ["both"]),
        ({"workers": 3}, ["both"] * 3),
        ({"prefill": 1, "decode": 1}, ["prefill", "decode"]),
        ({"prefill": 2, "decode": 3}, ["prefill"] * 2 + ["decode"] * 3),
        ({"prefill": 1, "workers": 2}, ["prefill", "both", "both"]),
    ],
)
def test_roles(flags: dict[str, int], roles: list[str]) -> None:
    config = FleetConfig(**flags)
    assert [spec.role for spec in specs(config, EngineConfig())] == roles
    assert config.count == len(roles)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"prefill": 1}, "add --decode 1"),
        ({"decode": 1}, "add --prefill 1"),
        ({"workers": 0}, "at least one"),
        ({"workers": -1}, "negative"),
        ({"prefill_set": ("tp=2",)}, "are for workers of"),
    ],
)
def test_numbers_that_cannot_work(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FleetConfig(**flags)


def test_settings_of_a_role() -> None:
    config = FleetConfig(prefill=1, decode=1, prefill_set=("tp=2", "max-batched-tokens=2048"), decode_set=("dp=3",))
    prefill, decode = specs(config, EngineConfig(max_seqs=8))
    assert (prefill.engine.tp, prefill.engine.max_batched_tokens, prefill.engine.max_seqs) == (2, 2048, 8)
    assert (decode.engine.dp, decode.engine.tp, decode.engine.max_seqs) == (3, 1, 8)


@pytest.mark.parametrize(
    ("setting", "field", "value"),
    [
        ("kv-dtype=int8", "kv_dtype", "int8"),
        ("--ep=true", "ep", True),
        ("memory_fraction = 0.5", "memory_fraction", 0.5),
        ("cpu-threads=3", "cpu_threads", 3),
        ("quantization=int8", "quantization", "int8"),
    ],
)
def test_values_are_read_by_their_types(setting: str, field: str, value: object) -> None:
    assert getattr(changed(EngineConfig(), (setting,)), field) == value


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("tp", "write name=value; the names are .*max-seqs"),
        ("speed=9", "not a setting"),
        ("tp=two", "tp=two.*int"),
        ("kv-dtype=int3", "int3"),
        ("tp=0", "at least 1"),
    ],
)
def test_settings_that_cannot_be(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        changed(EngineConfig(), (setting,))


def test_processors_are_divided_or_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "divided", lambda wanted: [(0, 1), (2,)])
    assert [spec.processors for spec in specs(FleetConfig(workers=2), EngineConfig())] == [(0, 1), (2,)]
    monkeypatch.setattr(fleet, "divided", lambda wanted: None)
    shared = specs(FleetConfig(workers=1000), EngineConfig())
    assert {(spec.processors, spec.engine.cpu_threads) for spec in shared} == {(None, 1)}
    own = specs(FleetConfig(workers=1000), EngineConfig(cpu_threads=2))
    assert {spec.engine.cpu_threads for spec in own} == {2}
