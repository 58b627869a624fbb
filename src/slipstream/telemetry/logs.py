"""Structured logs: text for a person at a terminal, JSON lines for a machine. The request's id is in every line.

Values come as `extra={...}` of the standard `logging` calls and are written as `key=value`, or as JSON keys.
"""

from __future__ import annotations

import contextvars
import logging
import sys
import time
from typing import Any, Literal, TextIO

import orjson

LogFormat = Literal["auto", "text", "json"]

REQUEST_ID: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}
_COLOURS = {"DEBUG": "2", "INFO": "36", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


def configure(
    *, format: LogFormat = "auto", level: str = "info", stream: TextIO | None = None, logger: str | None = None
) -> logging.Handler:
    """Send logs to `stream` (standard error if None) and return the handler.

    auto: text on a terminal, JSON otherwise. `logger`: the tree to configure, None for the root. Calling it again
    replaces the handler that it set before.
    """
    stream = sys.stderr if stream is None else stream
    terminal = stream.isatty()
    text = format == "text" or (format == "auto" and terminal)
    handler = logging.StreamHandler(stream)
    handler.name = "slipstream"
    handler.setFormatter(TextFormatter(colour=terminal) if text else JsonFormatter())
    root = logging.getLogger(logger)
    for old in [h for h in root.handlers if h.name == handler.name]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    return handler


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    extras = {k: v for k, v in vars(record).items() if k not in _STANDARD and v is not None}
    request_id = REQUEST_ID.get()
    if request_id is not None:
        extras.setdefault("request_id", request_id)
    return extras


class TextFormatter(logging.Formatter):
    """`12:00:01 INFO  server: message key=value`, with colours on a terminal."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self.colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback below it if there is one."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = f"{record.levelname:<8}"
        fields = "".join(f" {k}={_plain(v)}" for k, v in _extras(record).items())
        if self.colour:
            level = f"\x1b[{_COLOURS.get(record.levelname, '0')}m{level}\x1b[0m"
            clock, fields = f"\x1b[2m{clock}\x1b[0m", f"\x1b[2m{fields}\x1b[0m" if fields else ""
        line = f"{clock} {level} {_one_line(record.getMessage())}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, and the values."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(entry, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def _one_line(text: str) -> str:
    """Control characters escaped, so that a line of the log cannot be forged."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if text.isprintable() and " " not in text and text else ascii(text)
