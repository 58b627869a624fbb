"""What crosses the parent's socket between a launcher and the keepers, who run workers on other hosts."""

from __future__ import annotations

import msgspec

from slipstream.cluster.config import WorkerConfig

BEAT_SECONDS = 1.0
"""A keeper says that it is there this often."""


class Here(msgspec.Struct, frozen=True, tag="here"):
    """A keeper is there, and which worker it runs (its identity; None: it is free). `place`: its host, for people.

    `role`: of the workers that it takes; "both" takes any.
    """

    version: str
    place: str
    role: str
    worker: str | None = None
    pid: int | None = None


class Gone(msgspec.Struct, frozen=True, tag="gone"):
    """The worker is dead. `code`, `how`, `words`: its exit, for the program and for people, and its last lines."""

    worker: str
    code: int
    how: str
    words: str


FromKeeper = Here | Gone


class Start(msgspec.Struct, frozen=True, tag="start"):
    """Run this worker. The keeper fills in what depends on its host."""

    config: WorkerConfig


class Kill(msgspec.Struct, frozen=True, tag="kill"):
    """Kill this worker; nothing happens if another one runs, or none."""

    worker: str


class Refuse(msgspec.Struct, frozen=True, tag="refuse"):
    """This keeper is of no use here; it ends."""

    why: str


ToKeeper = Start | Kill | Refuse
