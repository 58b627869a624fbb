"""`slipstream worker`: this host runs workers for a server elsewhere that was started with `--launcher join`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from slipstream.telemetry.logs import LogFormat


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Settings of `slipstream worker`.

    Parameters
    ----------
    secret_file
        File with the secret that the server has too. None: the variable SLIPSTREAM_CLUSTER_SECRET.
    role
        Workers that run here: prefill, decode, or both for any.
    log_format
        text, json (one object a line), or auto: text on a terminal, json otherwise.
    """

    secret_file: Path | None = None
    role: Literal["both", "prefill", "decode"] = "both"
    log_format: LogFormat = "auto"


def worker(server: str, /, *, options: Annotated[WorkerOptions, Parameter(name="*")] = WorkerOptions()) -> None:
    """Run workers of a server on this host, one at a time, for as long as this command runs.

    Parameters
    ----------
    server
        Where the server listens for workers, such as tcp://10.0.0.1:5557.
    """
    from slipstream.cluster.curve import read_secret
    from slipstream.cluster.keeper import KeeperConfig, keep
    from slipstream.telemetry import logs

    logs.configure(format=options.log_format, level="info")
    keep(KeeperConfig(endpoint=server, secret=read_secret(options.secret_file), role=options.role))
