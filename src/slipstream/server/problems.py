"""Errors as HTTP answers, in OpenAI's shape, before and in the middle of a stream."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from slipstream.api.replies import ErrorBody, ErrorReply
from slipstream.errors import Overloaded, RequestError, Unavailable

_UNAVAILABLE_RETRY = 5


def error_bytes(error: RequestError) -> bytes:
    """The JSON of `{"error": {...}}`."""
    body = ErrorBody(message=error.message, type=error.kind, param=error.param, code=error.code)
    return msgspec.json.encode(ErrorReply(body))


def error_response(error: RequestError) -> Response:
    """The whole answer, with Retry-After or WWW-Authenticate where the status asks for one."""
    headers = {}
    match error:
        case Overloaded():
            headers["Retry-After"] = str(error.retry_after)
        case Unavailable():
            headers["Retry-After"] = str(_UNAVAILABLE_RETRY)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(error_bytes(error), error.status, headers, media_type="application/json")


def http_problem(status: int, message: str, code: str) -> RequestError:
    """A RequestError of any status below 500: wrong path, wrong method."""
    error = RequestError(message, code=code)
    error.status = status
    error.kind = "not_found_error" if status == 404 else "invalid_request_error"
    return error
