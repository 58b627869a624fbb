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
        """200 while the process can serve or will; 503 once an engine of it is lost for good: restart the process.

        A server with a worker that is not ready is well: others have its requests, or they wait for it.
        """
        failure = self.front.failure if self.front.started else None
        if failure is not None:
            return JSONResponse({"status": "failed", "reason": failure}, 503)
        told = [
            {"worker": state.index, "role": state.role, "state": state.state, "restarts": state.restarts}
            for state in (self.front.text.workers if self.front.text is not None else ())
        ]
        return JSONResponse({"status": "ok", "workers": told} if told else {"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """200 when requests should be sent here; 503 while an engine loads or restarts, and during a drain."""
        front = self.front
        if front.ready:
            return JSONResponse({"status": "ready"})
        state = "draining" if front.draining else "restarting" if front.started else "starting"
        return JSONResponse({"status": state}, 503)

    async def version(self, request: Request) -> Response:
        """The server's version."""
        return JSONResponse({"version": __version__})

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text format."""
        self.front.follow()
        return Response(self.front.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def models(self, request: Request) -> Response:
        """The models served: one that generates text, or vectors, and one that makes images; at least one of them."""
        return _json(ModelList(data=self._models()))

    async def model(self, request: Request) -> Response:
        """The model of that name. Raises NotFound."""
        name = request.path_params["id"]
        for model in self._models():
            if model.id == name:
                return _json(model)
        raise self.front.unknown_model(name)

    def _models(self) -> list[Model]:
        front = self.front
        if not front.started:
            front.check_open()
        return [*self._language_model(), *self._image_model()]

    def _language_model(self) -> list[Model]:
        front = self.front
        if front.text is None:
            return []
        info = front.text.info
        return [
            Model(
                id=front.model,
                created=front.created,
                root=info.model,
                max_model_len=info.max_model_len,
                task=front.task,
                embedding_size=info.pooling.size if info.pooling is not None and front.task == "embed" else UNSET,
            )
        ]

    def _image_model(self) -> list[Model]:
        images = self.front.images
        if images is None:
            return []
        root = images.client.info.model
        return [Model(id=images.model, created=self.front.created, root=root, task="image", image=images.limits)]


def _json(reply: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(reply), media_type="application/json")
