"""The HTTP server: OpenAI's API over an engine that another process runs. It never loads JAX."""

from slipstream.server.app import build_app
from slipstream.server.config import ServerConfig
from slipstream.server.serve import run, tokenizer_for

__all__ = ["ServerConfig", "build_app", "run", "tokenizer_for"]
