"""Which launcher the settings ask for."""

from __future__ import annotations

from collections.abc import Callable

from slipstream.cluster.curve import read_secret
from slipstream.cluster.launch import Launcher, Listen
from slipstream.cluster.launch_config import LaunchConfig
from slipstream.cluster.remote import JoinLauncher


def _join(config: LaunchConfig) -> Launcher:
    return JoinLauncher(Listen(config.worker_listen, read_secret(config.secret_file)))


LAUNCHERS: dict[str, Callable[[LaunchConfig], Launcher]] = {"join": _join}


def launcher_of(config: LaunchConfig) -> Launcher | None:
    """The launcher; None for workers on this machine. Raises ConfigError for what it lacks."""
    make = LAUNCHERS.get(config.launcher)
    return None if make is None else make(config)
