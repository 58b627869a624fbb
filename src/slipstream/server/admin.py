"""GET /admin/workers, POST /admin/drain and /admin/reload: for those who run the server, and only with --admin.

They are not there by default, keys or not: a key is given to those who may use the model, and they must not be able to
stop it. Where they are, they ask for a key like the rest.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from slipstream.api.admin import DrainRequest, ReloadRequest, Worker, WorkerList
from slipstream.cluster.client import WorkerState
from slipstream.errors import ConfigError, RequestError, SlipstreamError, Unavailable
from slipstream.server.body import read_request
from slipstream.server.config import ServerConfig, api_keys
from slipstream.server.front import Front

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def check_admin(config: ServerConfig) -> None:
    """Raises ConfigError where anybody on the network could stop the server."""
    if config.admin and config.host not in _LOOPBACK and not api_keys(config):
        raise ConfigError(
            f"--admin with --host {config.host} lets everybody who reaches it stop the server: "
            "set SLIPSTREAM_API_KEY or --api-key-file"
        )


class AdminEndpoints:
    """The endpoints of one server."""

    def __init__(self, front: Front) -> None:
        self.front = front

    async def workers(self, request: Request) -> Response:
        """The state of each worker."""
        return self._reply(None)

    async def drain(self, request: Request) -> Response:
        """Let a worker leave, or the whole server: that begins, and 202 is the answer."""
        body = await read_request(request, DrainRequest, self.front.config.max_body_bytes)
        if body.worker is None:
            if self.front.leave is None:
                raise Unavailable("this server cannot end itself: end its process", code="not_possible")
            self.front.leave(self._timeout(body.timeout))
            return JSONResponse({"status": "draining"}, 202)
        return self._reply(await self.front.client.drain(body.worker, self._timeout(body.timeout)))

    async def reload(self, request: Request) -> Response:
        """Start workers anew, with other weights if a model is named. The answer comes when all are ready."""
        front = self.front
        body = await read_request(request, ReloadRequest, front.config.max_body_bytes)
        front.check_open()
        path = None
        locate = front.locate
        if body.model is not None and locate is not None:
            name = body.model
            try:
                path = str(await front.in_thread(lambda: locate(name)))
            except RequestError:
                raise
            except SlipstreamError as error:
                raise RequestError(str(error), param="model", code="cannot_load") from None
        elif body.model is not None:
            path = body.model
        return self._reply(await front.client.reload(path, self._timeout(body.timeout), body.worker))

    def _timeout(self, asked: float | None) -> float:
        if asked is not None and not 0 <= asked < float("inf"):
            raise RequestError(f"timeout must not be negative, got {asked}", param="timeout")
        return self.front.config.drain_timeout if asked is None else asked

    def _reply(self, moved: int | None) -> Response:
        workers = [_told(state) for state in self.front.client.workers]
        return Response(msgspec.json.encode(WorkerList(workers=workers, moved=moved)), media_type="application/json")


def _told(state: WorkerState) -> Worker:
    return Worker(
        worker=state.index,
        role=state.role,
        state=state.state,
        model=state.model,
        pid=state.pid,
        restarts=state.restarts,
        requests=state.requests,
        processors=None if state.processors is None else list(state.processors),
        reason=state.reason,
    )
