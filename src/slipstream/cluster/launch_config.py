"""Where workers run: the command line's flags are these fields. Plain, so that a command's help loads nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """Where the language model's workers run.

    Parameters
    ----------
    launcher
        local: on this machine. join: wherever `slipstream worker` was started with this server's address.
    worker_listen
        Where workers of other machines connect, such as tcp://0.0.0.0:5557. Others than 127.0.0.1 are reached from the
        network; who connects must know the secret.
    secret_file
        File with the secret that this server and workers on other machines share. None: the variable
        SLIPSTREAM_CLUSTER_SECRET.
    """

    launcher: Literal["local", "join"] = "local"
    worker_listen: str = "tcp://127.0.0.1:5557"
    secret_file: Path | None = None
