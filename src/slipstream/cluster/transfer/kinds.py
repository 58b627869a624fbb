"""The ways in which pages move between workers, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from slipstream.cluster.messages import TransferKind
from slipstream.cluster.transfer.fetches import Receiver
from slipstream.cluster.transfer.jax_pull import JaxTransfer
from slipstream.cluster.transfer.offers import Sender
from slipstream.cluster.transfer.sockets import SocketReceiver, SocketSender
from slipstream.engine.page_io import PageIO


class Kind(NamedTuple):
    """Both ends of one way, for one engine."""

    sender: Sender
    receiver: Receiver


def _socket(io: PageIO, host: str) -> Kind:
    return Kind(SocketSender(io.shape), SocketReceiver(io))


def _jax(io: PageIO, host: str) -> Kind:
    both = JaxTransfer(io, host)
    return Kind(both, both)


KINDS: Mapping[TransferKind, Callable[[PageIO, str], Kind]] = {"socket": _socket, "jax": _jax}
"""Made for an engine and the host that others reach this one at."""
