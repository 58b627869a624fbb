"""Every error that Slipstream raises on purpose. A message says what is wrong and what to do about it.

The command line prints the message alone, without a traceback; the server turns `RequestError`s into OpenAI's error
shape with their status, `param` and `code`.
"""

from __future__ import annotations


class SlipstreamError(Exception):
    """Base of all errors that are meant for a person to read."""


class ConfigError(SlipstreamError):
    """A flag, field or combination of them that cannot work, found before anything is loaded."""


class ModelNotFound(SlipstreamError):
    """A model name that resolves to nothing; the message lists what was tried."""


class CheckpointError(SlipstreamError):
    """A checkpoint that is truncated, corrupt, or does not hold the tensors that the model's plan asks for."""


class UnknownConfigKeys(CheckpointError):
    """Keys in a model's config that no code reads: dropping them in silence could change the model's answers."""


class UnsupportedModel(CheckpointError):
    """An architecture (or a variant of one) that Slipstream does not serve; the message lists those that it does."""


class OutOfMemory(SlipstreamError):
    """Weights, temporaries or KV pages do not fit; the message gives both numbers and the flag to change."""


class WorkerError(SlipstreamError):
    """A worker process failed to start, or died more often than the supervisor restarts it."""


class EndpointError(SlipstreamError):
    """A server that a benchmark was pointed at does not answer, refuses the key, or lists no model."""


class RequestError(SlipstreamError):
    """A request that is refused. `status` is the HTTP status; `param` names the field at fault, `code` the reason."""

    status = 400
    kind = "invalid_request_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class UnsupportedField(RequestError):
    """A field that Slipstream does not act on. It is refused, because ignoring it would change the answer unseen."""


class PromptTooLong(RequestError):
    """The prompt and the tokens asked for do not fit the model's context; the message states both numbers."""


class NoTokenizer(RequestError):
    """Text was sent to a model whose checkpoint has no tokenizer: only token ids work."""


class NoChatTemplate(RequestError):
    """A chat request to a model without a chat template: /v1/completions works."""


class Unauthorized(RequestError):
    """No API key, or one that the server does not know."""

    status = 401
    kind = "authentication_error"


class NotFound(RequestError):
    """No such model or path."""

    status = 404
    kind = "not_found_error"


class Conflict(RequestError):
    """What is asked for cannot be done in the server's present state."""

    status = 409


class TooLarge(RequestError):
    """The body is over the server's size limit."""

    status = 413


class Overloaded(RequestError):
    """The queue is full. `retry_after` is the number of seconds after which a retry has a chance."""

    status = 429
    kind = "rate_limit_error"

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message, code="queue_full")
        self.retry_after = retry_after


class RequestFailed(RequestError):
    """An accepted request that could not be finished (a worker that cannot be restarted, say)."""

    status = 500
    kind = "server_error"


class Unavailable(RequestError):
    """The server is starting, draining, or has no worker that could take the request."""

    status = 503
    kind = "server_error"


class RequestTimeout(RequestError):
    """The request ran past the server's per-request limit and was cancelled."""

    status = 504
    kind = "timeout_error"


AT_START: dict[str, type[SlipstreamError]] = {
    error.__name__: error
    for error in (CheckpointError, ConfigError, ModelNotFound, OutOfMemory, UnknownConfigKeys, UnsupportedModel)
}
"""Errors that keep an engine from starting, by the names that they cross process borders under."""
