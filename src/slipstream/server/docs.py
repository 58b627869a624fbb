"""/openapi.json, made from the request and reply types, and /docs, a small page that shows it without any CDN."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import orjson
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from slipstream import __version__
from slipstream.api import admin, images, openai, pooling, replies

_PAGE = Path(__file__).parent / "docs.html"
_REF = "#/components/schemas/{name}"

# method, path, what it does, request type, reply type (None: text or plain JSON), whether keys are asked for
_OPERATIONS: tuple[tuple[str, str, str, type[Any] | None, type[Any] | None, bool], ...] = (
    ("post", "/v1/chat/completions", "Continue a conversation", openai.ChatRequest, replies.ChatCompletion, True),
    ("post", "/v1/completions", "Continue a text", openai.CompletionRequest, replies.Completion, True),
    ("post", "/v1/embeddings", "Vectors of texts", pooling.EmbeddingRequest, pooling.EmbeddingReply, True),
    *(
        ("post", f"{at}/rerank", "Order documents by a query", pooling.RerankRequest, pooling.RerankReply, True)
        for at in ("/v1", "/v2", "")
    ),
    *(
        ("post", f"{at}/score", "How well pairs of texts go together", pooling.ScoreRequest, pooling.ScoreReply, True)
        for at in ("/v1", "")
    ),
    *(
        ("post", f"{at}/classify", "Shares of labels", pooling.ClassifyRequest, pooling.ClassifyReply, True)
        for at in ("/v1", "")
    ),
    ("post", "/v1/images/generations", "Make images", images.ImageGenerationRequest, images.ImagesReply, True),
    ("post", "/v1/images/edits", "Change an image", images.ImageEditRequest, images.ImagesReply, True),
    ("get", "/files/{name}", "An image that a reply named, for a while", None, None, False),
    ("get", "/v1/models", "The served models", None, replies.ModelList, True),
    ("get", "/v1/models/{id}", "The model of that name", None, replies.Model, True),
    ("post", "/tokenize", "Text or messages to token ids", openai.TokenizeRequest, replies.Tokenized, True),
    ("post", "/detokenize", "Token ids to text", openai.DetokenizeRequest, replies.Detokenized, True),
    ("get", "/admin/workers", "The workers (with --admin)", None, admin.WorkerList, True),
    ("post", "/admin/drain", "Let a worker leave, or the server (with --admin)", admin.DrainRequest, None, True),
    ("post", "/admin/reload", "Change weights (with --admin)", admin.ReloadRequest, admin.WorkerList, True),
    ("get", "/health", "200 while the server can serve or will; 503 once its engine is lost", None, None, False),
    ("get", "/ready", "200 while requests should be sent here", None, None, False),
    ("get", "/metrics", "Prometheus metrics, with vLLM's names", None, None, False),
    ("get", "/version", "The server's version", None, None, False),
)

_STREAMS: Mapping[type[Any], tuple[type[Any], ...]] = {
    replies.ChatCompletion: (replies.ChatChunk,),
    replies.Completion: (replies.Completion,),
    images.ImagesReply: (images.ImageProgress, images.PartialImage, images.CompletedImage),
}
"""What the events of a stream are, where a reply can be streamed."""

_FILES: Mapping[str, Any] = {
    "type": "object",
    "required": ["image"],
    "properties": {
        "image": {"type": "string", "format": "binary", "description": "A PNG, JPEG or WebP."},
        "mask": {
            "type": "string",
            "format": "binary",
            "description": "Of the image's size. Its transparent part is made anew; of a mask without one, its white.",
        },
    },
}
"""The files of an edit."""


@functools.cache
def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    types = [t for operation in _OPERATIONS for t in operation[3:5] if t is not None]
    types += [replies.ErrorReply, *(kind for kinds in _STREAMS.values() for kind in kinds)]
    _, schemas = msgspec.json.schema_components(dict.fromkeys(types), ref_template=_REF)
    for schema in schemas.values():
        _describe(schema)
    paths: dict[str, Any] = {}
    for method, path, summary, request, reply, keyed in _OPERATIONS:
        paths.setdefault(path, {})[method] = _operation(summary, path, request, reply, keyed=keyed)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Slipstream",
            "version": __version__,
            "description": "OpenAI's API with vLLM's extra fields for text and diffusers' for images. "
            "A field that is not listed is refused.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(
    summary: str, path: str, request: type[Any] | None, reply: type[Any] | None, *, keyed: bool
) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "The answer"}
    if reply is not None:
        answer["content"] = {"application/json": {"schema": _ref(reply)}}
        if reply in _STREAMS:
            answer["content"]["text/event-stream"] = {"schema": {"anyOf": [_ref(kind) for kind in _STREAMS[reply]]}}
    error = {"description": "An error", "content": {"application/json": {"schema": _ref(replies.ErrorReply)}}}
    operation: dict[str, Any] = {"summary": summary, "responses": {"200": answer, "default": error}}
    if request is not None:
        content: dict[str, Any] = {"application/json": {"schema": _ref(request)}}
        if request is images.ImageEditRequest:
            content["multipart/form-data"] = {"schema": {"allOf": [_ref(request), _FILES]}}
        operation["requestBody"] = {"required": True, "content": content}
    for name in re.findall(r"\{(\w+)\}", path):
        operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}]
    if keyed:
        operation["security"] = [{}, {"key": []}]
    return operation


def _ref(kind: type[Any]) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}


def _describe(schema: dict[str, Any]) -> None:
    """Move the fields' descriptions from a type's docstring (its Parameters section) to the fields."""
    summary, _, section = inspect.cleandoc(schema.get("description", "")).partition("Parameters\n----------\n")
    schema["description"] = summary.strip()
    for name, text in re.findall(r"^(\w+)\n((?: {4}.*\n?)+)", section, re.MULTILINE):
        schema["properties"][name]["description"] = " ".join(text.split())


async def openapi(request: Request) -> Response:
    """The document."""
    return Response(orjson.dumps(document()), media_type="application/json")


async def docs_page(request: Request) -> Response:
    """The page. It may run its own script and talk to this server only."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
    return FileResponse(_PAGE, headers={"content-security-policy": policy})
