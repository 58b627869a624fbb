"""What a member of a group runs: the leader an engine, a follower what the leader's engine tells it to."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import jax

from slipstream import __version__
from slipstream.checkpoint import open_checkpoint
from slipstream.checkpoint.fingerprint import identity
from slipstream.cluster.config import Report, WorkerConfig
from slipstream.cluster.plans import Card, Follower, Joined, join
from slipstream.cluster.process import FATAL_EXIT, LOST_EXIT
from slipstream.cluster.worker import among_neighbours
from slipstream.engine.config import EngineConfig
from slipstream.engine.loop import Engine
from slipstream.engine.replicas import Replicas
from slipstream.engine.start import follow, start
from slipstream.errors import AT_START, SlipstreamError
from slipstream.parallel.hosts import join_devices
from slipstream.spec.source import Checkpoint

logger = logging.getLogger(__name__)

_OWN = ("compile_cache", "weight_cache", "cpu_threads", "memory_fraction")
"""Settings that a machine may have to itself."""


@contextmanager
def leading(config: WorkerConfig, report: Report) -> Iterator[Engine | Replicas]:
    """The engine of a group whose leader this process is; the group ends with the context. Raises what `start` does."""
    assert config.engine is not None
    checkpoint = open_checkpoint(Path(config.model))
    joined = _joined(config, checkpoint, report)
    try:
        yield start(checkpoint, among_neighbours(config.engine, config.neighbours), report, joined.group)
    finally:
        joined.group.end()


def run_follower(config: WorkerConfig) -> int:
    """Follow the leader until the group ends.

    Returns the exit code: FATAL_EXIT for what a restart does not change, LOST_EXIT for what ended with this group.
    """
    assert config.engine is not None
    follower: Follower | None = None
    try:
        checkpoint = open_checkpoint(Path(config.model))
        group = _joined(config, checkpoint, _quiet).group
        assert isinstance(group, Follower)
        follower = group
        follow(checkpoint, among_neighbours(config.engine, config.neighbours), follower)
    except Exception as error:
        if isinstance(error, SlipstreamError):
            logger.error("%s", error)
        else:
            logger.exception("a member of a group failed")
        if follower is not None:
            follower.fail(error)
        return FATAL_EXIT if type(error).__name__ in AT_START else LOST_EXIT
    follower.end()
    return 0


def card_of(config: WorkerConfig, checkpoint: Checkpoint) -> Card:
    """What this member is."""
    assert config.engine is not None and config.group is not None
    return Card(
        size=config.group.size,
        version=__version__,
        jax=jax.__version__,
        model=identity(checkpoint),
        settings=settings_of(config.engine),
    )


def settings_of(engine: EngineConfig) -> dict[str, str]:
    """The settings that all members must have, by their flags."""
    fields = {name: value for name, value in asdict(engine).items() if name not in _OWN}
    return {f"--{name.replace('_', '-')}": str(value) for name, value in fields.items()}


def _joined(config: WorkerConfig, checkpoint: Checkpoint, report: Report) -> Joined:
    assert config.group is not None
    joined = join(config.group, card_of(config, checkpoint), report)
    join_devices(joined.coordinator, joined.group.rank, joined.group.size)
    return joined


def _quiet(stage: str, done: int, total: int | None) -> None:
    """A follower's progress is the leader's."""
