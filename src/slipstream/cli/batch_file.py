"""OpenAI's batch format: one JSON object a line, requests in, results out, and what makes a run resumable.

In:  {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
Out: {"id": "batch_req_...", "custom_id": "a", "response": {"status_code", "request_id", "body"} | null,
      "error": {"code", "message"} | null}
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from slipstream.errors import ConfigError

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")

_BEGINNING = b'{"id":"batch_req_'
"""What every line that `ResultFile` writes begins with. A last line without its end is cut off only if it does, too."""


@dataclass(frozen=True)
class BatchRequest:
    """A line of the input that can be sent."""

    custom_id: str
    url: str
    body: dict[str, Any]


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be sent; this error is its result. `code` is for programs, `message` for people."""

    custom_id: str
    code: str
    message: str


def read_requests(path: Path) -> Iterator[BatchRequest | BadLine]:
    """Every line of the file but blank ones, in order. Raises ConfigError if the file cannot be read.

    A line without a usable custom_id gets `line:NUMBER`, so that its error can be found and is not repeated when the
    run is resumed.
    """
    seen: set[str] = set()
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                request = _parse(line, f"line:{number}")
                if request.custom_id in seen:
                    message = f"line {number} repeats the custom_id {request.custom_id!r}: each must be its own"
                    yield BadLine(f"line:{number}", "duplicate_custom_id", message)
                    continue
                seen.add(request.custom_id)
                yield request
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _parse(line: bytes, fallback_id: str) -> BatchRequest | BadLine:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return BadLine(fallback_id, "invalid_json", f"not JSON: {error}")
    if not isinstance(value, dict):
        return BadLine(fallback_id, "invalid_request", "a line must be a JSON object")
    custom_id = value.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return BadLine(fallback_id, "missing_custom_id", "custom_id must be a string that is not empty")
    if value.get("method", "POST") != "POST":
        return BadLine(custom_id, "invalid_method", f"method must be POST, got {value['method']!r}")
    if value.get("url") not in URLS:
        return BadLine(custom_id, "invalid_url", f"url must be one of {', '.join(URLS)}, got {value.get('url')!r}")
    body = value.get("body")
    if not isinstance(body, dict):
        return BadLine(custom_id, "invalid_body", "body must be a JSON object")
    if body.get("stream"):
        return BadLine(custom_id, "stream_not_supported", "a batch has whole answers: leave out stream")
    return BatchRequest(custom_id, value["url"], body)


class ResultFile:
    """The output file. Opening it reads what earlier runs have written and cuts off a last line that was not finished.

    A file that holds anything else is refused and left as it is.

    `done` holds the custom_ids that have a result. Each `write` reaches the operating system before it returns, so a
    run that is killed loses at most the line that it was writing, and that one is done again.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConfigError if the file cannot be written, or holds something that is not a result."""
        self.path = path
        self.done: set[str] = set()
        try:
            self._file: BinaryIO = path.open("a+b", buffering=0)
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from error
        end = self._read_done()
        self._file.truncate(end)

    def _read_done(self) -> int:
        """Fill `done`; returns the offset behind the last whole line."""
        end = 0
        self._file.seek(0)
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                whole = line.endswith(b"\n")
                if not (_is_result(line) if whole else line[: len(_BEGINNING)] == _BEGINNING[: len(line)]):
                    self._file.close()
                    raise ConfigError(f"{self.path} line {number} is not a result of a batch: name another output file")
                if not whole:
                    break
                self.done.add(orjson.loads(line)["custom_id"])
                end += len(line)
        return end

    def write(self, custom_id: str, *, response: dict[str, Any] | None, error: BadLine | None) -> None:
        """Append one result. Exactly one of `response` and `error` is given."""
        result = {
            "id": f"batch_req_{secrets.token_hex(12)}",
            "custom_id": custom_id,
            "response": response,
            "error": None if error is None else {"code": error.code, "message": error.message},
        }
        self._file.write(orjson.dumps(result, option=orjson.OPT_APPEND_NEWLINE))
        self.done.add(custom_id)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _is_result(line: bytes) -> bool:
    """Whether this is a line of results, of ours or of OpenAI's, and not one of requests, say."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return isinstance(value, dict) and isinstance(value.get("custom_id"), str) and {"response", "error"} <= value.keys()
