"""The server's settings. The command line's flags are these fields; each is read somewhere, a test holds that."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slipstream.errors import ConfigError
from slipstream.telemetry.logs import LogFormat

API_KEY_VARIABLE = "SLIPSTREAM_API_KEY"

_AT_LEAST_ONE = (
    "max_body_bytes",
    "max_upload_bytes",
    "max_prompt_tokens",
    "max_queue",
    "max_image_queue",
    "image_files_bytes",
)


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Settings of the HTTP server.

    Parameters
    ----------
    host
        Address to listen on. Other machines reach the server only on another address than 127.0.0.1, such as 0.0.0.0.
    port
        Port to listen on; 0 takes a free one.
    api_key_file
        File with the API keys that are accepted, one a line (# starts a comment). The variable SLIPSTREAM_API_KEY adds
        one. No key at all: everybody may use the server. /health, /ready, /metrics, /version, the page and the API's
        description never need a key.
    admin
        Serve /admin/workers, /admin/drain and /admin/reload too, to whoever may use the server.
    cors_origins
        Origins whose web pages may call the API, such as https://chat.example.org; * means all.
    max_body_bytes
        Largest request body, in bytes.
    max_upload_bytes
        Largest body of an image edit, with its files, in bytes.
    max_prompt_tokens
        Longest prompt, in tokens. None: what the model's context allows.
    max_queue
        Sequences, waiting and running, over which a request is refused with 429 and Retry-After.
    max_image_queue
        The same for images.
    image_files_bytes
        Most bytes of the image files that URLs name; the oldest go first.
    image_files_seconds
        Seconds after which such a file is removed.
    request_timeout
        Seconds after which a request is cancelled, from its arrival. None: never.
    drain_timeout
        Seconds that running requests get to finish after SIGTERM or SIGINT.
    served_model_name
        The model's name in the API. None: the name that it was loaded under.
    served_image_model_name
        The same for the image model.
    chat_template
        File with a Jinja chat template to use in place of the checkpoint's.
    log_format
        text, json (one object a line), or auto: text on a terminal, json otherwise.
    log_level
        Least level of the log lines written.
    otel_endpoint
        Where OpenTelemetry spans go (OTLP over HTTP), such as http://127.0.0.1:4318/v1/traces. None: no spans.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key_file: Path | None = None
    admin: bool = False
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 8 * 2**20
    max_upload_bytes: int = 32 * 2**20
    max_prompt_tokens: int | None = None
    max_queue: int = 256
    max_image_queue: int = 32
    image_files_bytes: int = 256 * 2**20
    image_files_seconds: float = 3600.0
    request_timeout: float | None = 600.0
    drain_timeout: float = 30.0
    served_model_name: str | None = None
    served_image_model_name: str | None = None
    chat_template: Path | None = None
    log_format: LogFormat = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    otel_endpoint: str | None = None

    def __post_init__(self) -> None:
        """Refuse settings that cannot work. Raises ConfigError."""
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be between 0 and 65535, got {self.port}")
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if not self.image_files_seconds > 0:
            raise ConfigError(f"image_files_seconds must be over 0, got {self.image_files_seconds}")
        if self.request_timeout is not None and not self.request_timeout > 0:
            raise ConfigError(f"request_timeout must be over 0, got {self.request_timeout}")
        if not self.drain_timeout >= 0:
            raise ConfigError(f"drain_timeout must not be negative, got {self.drain_timeout}")


def api_keys(config: ServerConfig, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The keys of the file and of the variable, in that order.

    Raises ConfigError for a file that cannot be read, holds no key, or holds one that no header can carry.
    """
    keys: list[str] = []
    if config.api_key_file is not None:
        path = config.api_key_file
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the API keys in {path}: {error}") from None
        keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not keys:
            raise ConfigError(f"{path} holds no API key: write one on a line, or leave --api-key-file out")
    if environ.get(API_KEY_VARIABLE, "").strip():
        keys.append(environ[API_KEY_VARIABLE].strip())
    for number, key in enumerate(keys, 1):
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError(f"API key {number} has a character that no header can carry: use letters and digits")
    return tuple(keys)


def chat_template(config: ServerConfig) -> str | None:
    """The template that overrides the checkpoint's, or None. Raises ConfigError for a file that cannot be read."""
    if config.chat_template is None:
        return None
    try:
        return config.chat_template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the chat template {config.chat_template}: {error}") from None
