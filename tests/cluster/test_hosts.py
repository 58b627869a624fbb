"""The flags of a model on several machines."""

from __future__ import annotations

import pytest

from slipstream.cluster.config import GroupConfig
from slipstream.cluster.curve import SECRET_VARIABLE
from slipstream.cluster.hosts import HostsConfig, group_of
from slipstream.errors import ConfigError


def test_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SECRET_VARIABLE, raising=False)
    assert group_of(HostsConfig()) is None
    assert group_of(HostsConfig(nnodes=2)) == GroupConfig(size=2)
    near = HostsConfig(nnodes=2, node_rank=1, master_addr="127.0.0.1:7000")
    assert group_of(near) == GroupConfig(size=2, rank=1, plans="tcp://127.0.0.1:7000")
    far = HostsConfig(nnodes=4, node_rank=0, master_addr="leader.example:7000")
    with pytest.raises(ConfigError, match="secret"):
        group_of(far)
    secret = "0123456789abcdef" * 2
    monkeypatch.setenv(SECRET_VARIABLE, secret)
    assert group_of(far) == GroupConfig(size=4, rank=0, plans="tcp://leader.example:7000", secret=secret)


@pytest.mark.parametrize(
    ("flags", "refusal"),
    [
        ({"nnodes": 0}, "at least 1"),
        ({"node_rank": 0}, "add --nnodes"),
        ({"nnodes": 2, "node_rank": 0}, "belong together"),
        ({"nnodes": 2, "node_rank": 2, "master_addr": "h:1"}, "must be 0 to 1, got 2"),
    ],
)
def test_what_cannot_work(flags: dict[str, int], refusal: str) -> None:
    with pytest.raises(ConfigError, match=refusal):
        HostsConfig(**flags)  # type: ignore[arg-type]
