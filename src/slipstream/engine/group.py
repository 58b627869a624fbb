"""A model on the devices of several processes: one leads, which has the scheduler, the others follow it.

A function on devices of several processes runs once each of them has called it, in the same order and with the same
numbers from the host. So the leader tells its followers of every call before it makes it, and they make it too. How
they speak is the group's own business; `slipstream.cluster` has one over sockets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from slipstream.engine.config import EngineConfig
from slipstream.errors import ConfigError
from slipstream.parallel.mesh import replicas, shared


class Call(NamedTuple):
    """A call of `Programs`: the method's name, and its arrays on the host."""

    name: str
    arrays: Sequence[np.ndarray]


class Group(Protocol):
    """One process's view of its group. Member 0 leads."""

    @property
    def rank(self) -> int:
        """Which member this is."""

    @property
    def size(self) -> int:
        """How many there are."""

    def smallest(self, number: int) -> int:
        """The smallest of all members' numbers. All ask in the same order; each waits for the others."""

    def tell(self, call: Call) -> None:
        """Have the followers make this call, after those before; waits while they are too far behind."""

    def calls(self) -> Iterator[Call]:
        """What the leader tells a follower, until it ends the group."""


class Alone:
    """A process that is no part of a group."""

    rank = 0
    size = 1

    def smallest(self, number: int) -> int:
        """Its own."""
        return number

    def tell(self, call: Call) -> None:
        """There is nobody to tell."""

    def calls(self) -> Iterator[Call]:
        """Nobody tells it anything."""
        return iter(())


ALONE = Alone()


def devices_for(config: EngineConfig, group: Group) -> list[list[jax.Device]]:
    """The devices of each replica: this process's own, or of a group's one replica, as many of every member.

    Raises ConfigError where there are not so many, or the replicas of a group are more than one.
    """
    if group.size == 1:
        return replicas(jax.local_devices(), config.tp, config.dp)
    if config.dp > 1:
        raise ConfigError(
            f"--dp {config.dp} in a group of {group.size} processes: a group has one replica; start more workers"
        )
    return [shared(jax.devices(), config.tp, group.size)]
