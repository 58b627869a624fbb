"""Replies of an engine in this process, for `slipstream chat`. Importing this loads JAX."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

from slipstream.api.sampling import SamplingParams
from slipstream.checkpoint import open_checkpoint, resolve
from slipstream.cli.progress import StageBars
from slipstream.cli.replies import Message, Piece
from slipstream.cli.serving import DEFAULT_MODEL, public_name
from slipstream.engine.config import EngineConfig
from slipstream.errors import NoChatTemplate
from slipstream.llm import LLM


class LocalReplies:
    """Replies of an `LLM`. `model` is its public name."""

    def __init__(self, llm: LLM, model: str) -> None:
        self.model = model
        self._llm = llm

    @classmethod
    def load(cls, model: str | None, engine: EngineConfig) -> LocalReplies:
        """Load a model, with progress bars.

        Raises what `LLM` raises, and NoChatTemplate for a model that cannot hold a conversation, before it is loaded.
        """
        name = model or DEFAULT_MODEL
        with StageBars() as bars:
            path = resolve(name, progress=bars)
            tokenizer = open_checkpoint(path).tokenizer
            if tokenizer is None or not tokenizer.chat_templates:
                raise NoChatTemplate(
                    f"{name} has no chat template (a base model?): serve it and use /v1/completions, or name another"
                )
            return cls(LLM(path, progress=bars, **asdict(engine)), public_name(name))

    def stream(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Generator[Piece, None, None]:
        """The reply as it is made."""
        shown = 0
        with closing(self._llm.stream_chat(messages, SamplingParams(**sampling))) as outputs:
            for output in outputs:
                reply = output.outputs[0]
                yield Piece(reply.text[shown:], len(reply.token_ids))
                shown = len(reply.text)
