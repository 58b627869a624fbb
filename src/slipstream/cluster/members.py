"""A worker of several processes: started together, dead when one of them is."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
from pathlib import Path

from msgspec.structs import replace

from slipstream.cluster.config import ENGINE_MODULES, WorkerConfig
from slipstream.cluster.process import FATAL_EXIT, LOST_EXIT, EarlyWorker, WorkerProcess

_LAST_WORD = 10.0
"""Seconds that the leader has to say why a follower ended, or to end after it, before it is killed."""

_SEQUELS = (LOST_EXIT, -signal.SIGABRT)
"""How members end that lost another one: by themselves, or by JAX's runtime."""
_SEQUEL_TIME = 0.2
"""Seconds within which a member's death may be seen after those that follow from it."""


async def spawn(config: WorkerConfig, early: EarlyWorker | None = None) -> WorkerProcess | WorkerGroup:
    """Start a worker: of one process, of the one member that belongs here, or of all members.

    `early`: a process that was started before and becomes the worker, or the leader. Raises OSError where no process
    can be started.
    """
    if config.group is None or config.group.rank is not None:
        return await WorkerProcess.spawn(config, early)
    return await WorkerGroup.spawn(config, early)


class WorkerGroup:
    """All members of a group, on this machine. The first that ends takes the others with it."""

    def __init__(self, members: list[WorkerProcess], folder: Path) -> None:
        """`folder` holds the leader's socket, and is removed at the end."""
        self._members = members
        self._folder = folder
        self._first = 0
        self.exited: asyncio.Task[int] = asyncio.get_running_loop().create_task(self._end(), name="slipstream-group")

    @classmethod
    async def spawn(cls, config: WorkerConfig, early: EarlyWorker | None = None) -> WorkerGroup:
        """Start them. Raises OSError where one cannot be started."""
        assert config.group is not None
        # Only this user can enter it, so the members need no secret.
        folder = Path(tempfile.mkdtemp(prefix="slipstream-group-"))
        members: list[WorkerProcess] = []
        try:
            for rank in range(config.group.size):
                group = replace(config.group, rank=rank, plans=f"unix:{folder / 'plans'}")
                own = early if rank == 0 else EarlyWorker(ENGINE_MODULES)
                members.append(await WorkerProcess.spawn(replace(config, group=group), own))
        except BaseException:
            for member in members:
                member.kill()
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return cls(members, folder)

    @property
    def pid(self) -> int:
        """The leader's process id."""
        return self._members[0].pid

    @property
    def pids(self) -> list[int]:
        """Those of all members, by rank."""
        return [member.pid for member in self._members]

    @property
    def last_lines(self) -> str:
        """The end of what the member that ended first wrote to standard error."""
        return self._members[self._first].last_lines

    def kill(self) -> None:
        """Kill all members with SIGKILL."""
        for member in self._members:
            member.kill()

    def describe_exit(self) -> str:
        """How the member that ended first did."""
        member = self._members[self._first]
        return f"(member {self._first} of {len(self._members)} of its group) {member.describe_exit()}"

    async def _end(self) -> int:
        """The exit code of the member that ended first, or FATAL_EXIT where the leader said why."""
        leader, everyone = self._members[0].exited, [member.exited for member in self._members]
        await asyncio.wait(everyone, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(_SEQUEL_TIME)
        ended = [rank for rank, exited in enumerate(everyone) if exited.done()]
        self._first = min(ended, key=lambda rank: everyone[rank].result() in _SEQUELS)
        code = everyone[self._first].result()
        if code in (0, FATAL_EXIT):
            # It was told to, or has told the leader why: which the leader tells us.
            await asyncio.wait(everyone if code == 0 else [leader], timeout=_LAST_WORD)
        self.kill()
        await asyncio.wait(everyone)
        shutil.rmtree(self._folder, ignore_errors=True)
        return FATAL_EXIT if leader.result() == FATAL_EXIT else code
