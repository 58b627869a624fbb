"""What the server is and how it does: models, health, readiness, version, metrics."""

from __future__ import annotations

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from slipstream import __version__
from slipstream.api.replies import Model, ModelList
from slipstream.server.front import Front
from slipstream.server.metrics import CONTENT_TYPE


class StatusEndpoints:
    """The endpoints of one server."""

    def __init__(self, front: Front) -> None:
        self.front = front

    async def health(self, request: Request) -> Response:
        """200 while the process can serve or will; 503 once its engine is lost for good: restart the process."""
        failure = self.front.client.failure if self.front.started else None
        if failure is not None:
            return JSONResponse({"status": "failed", "reason": failure}, 503)
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """200 when requests should be sent here; 503 while the engine loads or restarts, and during a drain."""
        front = self.front
        if front.ready:
            return JSONResponse({"status": "ready"})
        state = "draining" if front.admission.draining else "restarting" if front.started else "starting"
        return JSONResponse({"status": state}, 503)

    async def version(self, request: Request) -> Response:
        """The server's version."""
        return JSONResponse({"version": __version__})

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text format."""
        self.front.follow()
        return Response(self.front.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def models(self, request: Request) -> Response:
        """The one model served."""
        return _json(ModelList(data=[self._model()]))

    async def model(self, request: Request) -> Response:
        """The model of that name. Raises NotFound."""
        model = self._model()
        self.front.check_model(request.path_params["id"])
        return _json(model)

    def _model(self) -> Model:
        front = self.front
        if not front.started:
            front.check_open()
        info = front.client.info
        return Model(
            id=front.model,
            created=front.created,
            root=info.model,
            max_model_len=info.max_model_len,
            task=front.task,
            embedding_size=info.pooling.size if info.pooling is not None and front.task == "embed" else UNSET,
        )


def _json(reply: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(reply), media_type="application/json")
