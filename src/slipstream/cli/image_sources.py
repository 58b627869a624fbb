"""Where `slipstream image` gets its pictures: an engine in this process, or a running server."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
import msgspec
import orjson

from slipstream.api.images import ImageEditRequest, ImageFields, OutputFormat
from slipstream.checkpoint import Progress
from slipstream.cli.replies import require_success, unreachable
from slipstream.diffusion.config import ImageEngineConfig
from slipstream.errors import ConfigError, RequestFailed

Tell = Callable[[int, int, int], None]
"""Called with an image's index, the steps that are done, and all of its steps."""


@dataclass(frozen=True)
class Picture:
    """A file's bytes, and the seed that gave it."""

    data: bytes
    seed: int


@contextlib.contextmanager
def opened(paths: Mapping[str, Path]) -> Iterator[Mapping[str, IO[bytes]]]:
    """The files to edit, open. Raises ConfigError for one that cannot be read."""
    with contextlib.ExitStack() as stack:
        try:
            streams = {name: stack.enter_context(path.open("rb")) for name, path in paths.items()}
        except OSError as error:
            raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from None
        yield streams


def made_here(
    path: Path,
    config: ImageEngineConfig,
    body: ImageFields,
    files: Mapping[str, Path],
    report: Progress,
    tell: Tell,
) -> list[Picture]:
    """Load the model at `path` and make the pictures. Importing what it needs loads JAX.

    Raises the engine's errors, and RequestError as a server would.
    """
    from slipstream.diffusion.start import start
    from slipstream.server.call import new_call
    from slipstream.server.image_coding import encode
    from slipstream.server.image_work import make_work, read_uploads

    engine = start(path, config, report)
    with opened(files) as streams:
        uploads = read_uploads({name: [stream] for name, stream in streams.items()}, engine.info) if streams else None
    work = make_work(body, uploads, engine.info, new_call(None))
    places = {request.id: i for i, request in enumerate(work.requests)}
    made: dict[int, Picture] = {}
    for request in work.requests:
        engine.add(request)
    while engine.has_work:
        for output in engine.step():
            index = places[output.id]
            tell(index, output.step, output.steps)
            if output.error is not None:
                raise RequestFailed(output.error)
            if output.image is not None:
                data = encode(output.image, work.kind, work.quality)
                made[index] = Picture(data, work.requests[index].seed)
    return [made[index] for index in sorted(made)]


def made_by_server(http: httpx.Client, body: ImageFields, files: Mapping[str, Path], tell: Tell) -> list[Picture]:
    """Ask a server for the pictures. Raises RequestFailed if it does not answer, or refuses."""
    fields: dict[str, Any] = msgspec.to_builtins(body)
    given = {name: value for name, value in fields.items() if value is not None} | {"stream": True, "progress": True}
    made: dict[int, Picture] = {}
    with opened(files) as streams:
        sent = _form(given, streams) if isinstance(body, ImageEditRequest) else {"json": given}
        path = "/v1/images/edits" if streams else "/v1/images/generations"
        try:
            with http.stream("POST", path, **sent) as response:
                if not response.is_success:
                    response.read()
                require_success(response)
                for event in _events(response.iter_lines()):
                    tell(event["index"], event["step"], event["steps"])
                    if event["type"].endswith(".completed"):
                        made[event["index"]] = Picture(base64.b64decode(event["b64_json"]), event["seed"])
        except httpx.TransportError as error:
            raise unreachable(http, error) from error
    return [made[index] for index in sorted(made)]


def _form(fields: Mapping[str, Any], streams: Mapping[str, IO[bytes]]) -> dict[str, Any]:
    """The arguments of a multipart request: values as text."""
    data = {name: value if isinstance(value, str) else orjson.dumps(value).decode() for name, value in fields.items()}
    return {"data": data, "files": dict(streams)}


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        event: dict[str, Any] = orjson.loads(data)
        if "error" in event:
            raise RequestFailed(str(event["error"].get("message", event["error"])))
        yield event


def format_of(path: Path) -> OutputFormat:
    """The format that a file's name asks for. Raises ConfigError for another one."""
    formats: dict[str, OutputFormat] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
    kind = formats.get(path.suffix.lower())
    if kind is None:
        raise ConfigError(f"{path}: name the file .png, .jpg or .webp")
    return kind
