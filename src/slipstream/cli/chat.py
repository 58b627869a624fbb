"""`slipstream chat`: a conversation in the terminal. Replies stream; each is followed by its speed."""

from __future__ import annotations

import contextlib
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from slipstream.cli.console import err, out
from slipstream.cli.replies import Message, Replies, ServerReplies, client
from slipstream.engine.config import EngineConfig
from slipstream.errors import SlipstreamError

HELP = "/new starts over, /exit (or Ctrl-D) leaves, Ctrl-C stops a reply."


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """Settings of a conversation.

    Parameters
    ----------
    url
        Talk with the server at this address. Without it the model runs in this process.
    system
        A system message to begin with.
    temperature
        0 takes the most likely token each time; higher is more random.
    top_p
        Keep the most likely tokens that together reach this probability.
    max_tokens
        Most tokens of a reply.
    seed
        The same seed gives the same conversation.
    """

    url: str | None = None
    system: str | None = None
    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 1024
    seed: int | None = None

    @property
    def sampling(self) -> dict[str, Any]:
        """The request's sampling fields."""
        fields = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens}
        return fields if self.seed is None else fields | {"seed": self.seed}


def chat(
    model: str | None = None,
    /,
    *,
    options: Annotated[ChatOptions, Parameter(name="*")] = ChatOptions(),
    engine: Annotated[EngineConfig, Parameter(name="*")] = EngineConfig(),
) -> int:
    """Talk with a model in the terminal.

    Parameters
    ----------
    model
        The model; smollm2-135m if none is named. With --url: its name there, and if none is named the first one.
    """
    with _replies(model, options, engine) as replies:
        return Conversation(replies, options).run(_turns())


@contextlib.contextmanager
def _replies(model: str | None, options: ChatOptions, engine: EngineConfig) -> Iterator[Replies]:
    if options.url is not None:
        with client(options.url) as http:
            yield ServerReplies(http, model)
        return
    from slipstream.cli.local import LocalReplies

    yield LocalReplies.load(model, engine)


class Conversation:
    """The messages so far, and the terminal that they appear on. `clock` gives seconds."""

    def __init__(self, replies: Replies, options: ChatOptions, clock: Callable[[], float] = time.perf_counter) -> None:
        self._replies = replies
        self._options = options
        self._clock = clock
        self.messages: list[Message] = []
        self.start_over()

    def start_over(self) -> None:
        """Forget all turns but the system message."""
        system = self._options.system
        self.messages = [] if system is None else [{"role": "system", "content": system}]

    def run(self, turns: Iterator[str]) -> int:
        """Answer each turn until they end or one is /exit. Returns the exit code: 1 if the last turn failed."""
        err().print(f"{self._replies.model}. {HELP}", style="dim")
        code = 0
        for turn in turns:
            match turn.strip():
                case "":
                    continue
                case "/exit" | "/quit":
                    break
                case "/new":
                    self.start_over()
                case "/help":
                    err().print(HELP, style="dim")
                case text:
                    code = self._answer(text)
        return code

    def _answer(self, text: str) -> int:
        asked = {"role": "user", "content": text}
        parts: list[str] = []
        try:
            self._print_reply([*self.messages, asked], parts)
        except KeyboardInterrupt:
            out().print()
        except SlipstreamError as error:
            # The conversation goes on as if this turn had not been written.
            out().print()
            err().print(f"error: {error}", style="bold red")
            return 1
        self.messages += [asked, {"role": "assistant", "content": "".join(parts)}]
        return 0

    def _print_reply(self, messages: Sequence[Message], parts: list[str]) -> None:
        begun = self._clock()
        first: float | None = None
        tokens: int | None = None
        with contextlib.closing(self._replies.stream(messages, self._options.sampling)) as pieces:
            for piece in pieces:
                if piece.text and first is None:
                    first = self._clock()
                tokens = piece.tokens if piece.tokens is not None else tokens
                parts.append(piece.text)
                sys.stdout.write(printable(piece.text))
                sys.stdout.flush()
        out().print()
        if first is not None and tokens is not None:
            err().print(speed(tokens, first - begun, self._clock() - first), style="dim")


def speed(tokens: int, to_first: float, rest: float) -> str:
    """One line about a reply of `tokens` tokens: `to_first` seconds until its first text, `rest` for the others."""
    rate = f", {(tokens - 1) / rest:.1f} tokens/s" if tokens > 1 and rest > 0 else ""
    return f"{tokens} tokens, first after {1000 * to_first:.0f} ms{rate}"


def printable(text: str) -> str:
    """`text` without control characters: a model's reply must not move the cursor or change the terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def _turns() -> Iterator[str]:
    """Lines of standard input; on a terminal with a prompt, line editing and history."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  importing it is what turns line editing on
    while True:
        try:
            yield input("> ")
        except EOFError:
            out().print()
            return
        except KeyboardInterrupt:
            out().print()
