"""A worker on several machines: the command line's flags are these fields, named as vLLM names them."""

from __future__ import annotations

from dataclasses import dataclass

from slipstream.cluster.config import GroupConfig
from slipstream.cluster.curve import read_secret
from slipstream.cluster.line import is_loopback, parse
from slipstream.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class HostsConfig:
    """One model on the devices of several processes, best one on each machine.

    Parameters
    ----------
    nnodes
        Processes that run the model together. --tp counts the devices of all of them, as many of each.
    node_rank
        Which of these processes this command starts, from 0. 0 also serves HTTP; the others wait for it, follow it, and
        wait for it again when it ends. None: all of them, on this machine.
    master_addr
        HOST:PORT where process 0 listens for the others, the same in all their commands. Unless it is a loopback
        address, all need the same secret in SLIPSTREAM_CLUSTER_SECRET.
    """

    nnodes: int = 1
    node_rank: int | None = None
    master_addr: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises ConfigError."""
        if self.nnodes < 1:
            raise ConfigError(f"--nnodes must be at least 1, got {self.nnodes}")
        if self.nnodes == 1 and (self.node_rank, self.master_addr) != (None, None):
            raise ConfigError("--node-rank and --master-addr are for a model on several machines: add --nnodes")
        if (self.node_rank is None) != (self.master_addr is None):
            raise ConfigError("--node-rank and --master-addr belong together: give both, or none to start all here")
        if self.node_rank is not None and not 0 <= self.node_rank < self.nnodes:
            raise ConfigError(f"--node-rank must be 0 to {self.nnodes - 1}, got {self.node_rank}")


def group_of(hosts: HostsConfig) -> GroupConfig | None:
    """The group that the flags describe; None for one process. Raises ConfigError, also for a secret that lacks."""
    if hosts.nnodes == 1:
        return None
    if hosts.master_addr is None:
        return GroupConfig(size=hosts.nnodes)
    plans = f"tcp://{hosts.master_addr}"
    _, address = parse(plans)
    secret = "" if is_loopback(address[0]) else read_secret(None)
    return GroupConfig(size=hosts.nnodes, rank=hosts.node_rank, plans=plans, secret=secret)
