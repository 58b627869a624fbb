"""What happens to every request before and after its endpoint: id, log line, errors, keys. Plain ASGI throughout,
so that an endpoint sees the real `receive` and a disconnect with it."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slipstream.errors import RequestError, RequestFailed, Unauthorized
from slipstream.server.body import Disconnected
from slipstream.server.call import new_call
from slipstream.server.image_files import PATH as FILES
from slipstream.server.problems import error_response, http_problem
from slipstream.telemetry.logs import REQUEST_ID

log = logging.getLogger("slipstream.server")

# Asked for every few seconds by machines.
_QUIET = frozenset({"/health", "/ready", "/metrics"})

# Open to everybody: probes and scrapers carry no keys, the page and the API's description hold no secrets, and the
# names of image files are secrets themselves.
_OPEN = frozenset({"/", "/health", "/ready", "/metrics", "/version", "/docs", "/openapi.json", "/favicon.ico"})
_OPEN_FOLDERS = ("/static/", FILES)


class Envelope:
    """Gives each request its id (X-Request-Id, in and out) and its line in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, with the call in the scope."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        call = new_call(Headers(scope=scope).get("x-request-id"))
        scope["slipstream.call"] = call
        status = 499  # nginx's number for a client that left before an answer

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = call.id
            await send(message)

        token = REQUEST_ID.set(call.id)
        try:
            await self.app(scope, receive, send_with_id)
        finally:
            log.log(
                logging.DEBUG if scope["path"] in _QUIET else logging.INFO,
                "%s %s",
                scope["method"],
                scope["path"],
                extra={"status": status, "ms": round((time.monotonic() - call.arrival) * 1e3, 1)},
            )
            REQUEST_ID.reset(token)


class Errors:
    """Turns what endpoints raise into OpenAI's error shape. What nobody foresaw is logged, and not told."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and answer for an endpoint that raised before it answered."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Disconnected:
            return
        except RequestError as error:
            if started:
                raise
            await error_response(error)(scope, receive, send)
        except Exception:
            if started:
                raise
            log.exception("an endpoint failed")
            failed = RequestFailed("internal error; the server's log has more", code="internal_error")
            await error_response(failed)(scope, receive, send)


async def http_exception(request: Request, error: Exception) -> Response:
    """The answer for a path or method that no route has."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return error_response(http_problem(404, f"no such path: {request.url.path}", "not_found"))
    if error.status_code == 405:
        message = f"{request.method} is not possible on {request.url.path}"
        response = error_response(http_problem(405, message, "method_not_allowed"))
        response.headers.update(error.headers or {})
        return response
    return error_response(http_problem(error.status_code, error.detail, "http_error"))


class Guard:
    """Refuses requests without a key, where there are keys, and those that other sites' pages send unasked.

    A body needs no content type here, so a browser would send any page's POST without asking first. Browsers mark such
    requests (Sec-Fetch-Site); they pass for the origins of `origins` only.
    """

    def __init__(self, app: ASGIApp, *, keys: Sequence[str], origins: Sequence[str]) -> None:
        self.app = app
        self._digests = [_digest(key.encode()) for key in keys]
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or raise."""
        if scope["type"] == "http" and not _is_open(scope):
            headers = Headers(scope=scope)
            self._check_origin(headers)
            if self._digests:
                self._check_key(headers)
        await self.app(scope, receive, send)

    def _check_origin(self, headers: Headers) -> None:
        site = headers.get("sec-fetch-site", "none")
        allowed = "*" in self._origins or headers.get("origin", "") in self._origins
        if site not in ("same-origin", "none") and not allowed:
            raise http_problem(
                403, "web pages of other origins may not call this server: see --cors-origins", "origin_not_allowed"
            )

    def _check_key(self, headers: Headers) -> None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized("an API key is needed: send `Authorization: Bearer KEY`", code="missing_api_key")
        given = _digest(key.strip().encode("latin-1", "replace"))
        # All are compared, whichever matches, and digests have one length: the time tells nothing of the keys.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if not any(matches):
            raise Unauthorized("the API key is not known to this server", code="invalid_api_key")


def _is_open(scope: Scope) -> bool:
    path: str = scope["path"]
    return path in _OPEN or path.startswith(_OPEN_FOLDERS)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
