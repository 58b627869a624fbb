"""Requests and replies of those who run a server: what its workers do, and changes to them."""

from __future__ import annotations

from typing import Literal

import msgspec


class DrainRequest(msgspec.Struct, kw_only=True):
    """POST /admin/drain: let a worker leave; with no `worker`, the whole server, as SIGTERM does.

    `timeout`: seconds that requests get to finish; None: the server's --drain-timeout. What a worker has not finished
    then goes on with another one.
    """

    worker: int | None = None
    timeout: float | None = None


class ReloadRequest(msgspec.Struct, kw_only=True):
    """POST /admin/reload: start the workers anew, one after the other, or `worker` alone.

    `model`: the name or folder of a checkpoint with the same tokenizer; None: the same one, read again.
    """

    model: str | None = None
    worker: int | None = None
    timeout: float | None = None


class Worker(msgspec.Struct, kw_only=True):
    """One worker. `reason`: why it is not ready. `requests`: those that it has. `processors`: None: it may use all."""

    worker: int
    role: Literal["both", "prefill", "decode"]
    state: str
    model: str
    pid: int | None
    restarts: int
    requests: int
    processors: list[int] | None
    reason: str | None


class WorkerList(msgspec.Struct, kw_only=True):
    """The language model's workers. `moved`: requests that a change gave to other workers, None where none was made."""

    workers: list[Worker]
    moved: int | None = None
