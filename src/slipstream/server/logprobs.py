"""Log probabilities in the shapes of chat, of text completions and of prompts."""

from __future__ import annotations

from collections.abc import Sequence

from slipstream.api.engine import TokenLogprobs
from slipstream.api.replies import (
    ChatLogprob,
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TopLogprob,
)
from slipstream.text import Detokenizer, Tokenizer
from slipstream.text.choice import Position

# JSON has no infinities; vLLM's stand-in for the logarithm of nothing.
_LOWEST = -9999.0


def finite(logprob: float) -> float:
    """The value, or vLLM's -9999.0 in place of minus infinity and NaN."""
    return logprob if logprob > _LOWEST else _LOWEST


class TokenNames:
    """Tokens as text and bytes. Where the tokenizer has none, a token is called `token_id:N`, and has no bytes."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    def text(self, token: int) -> str:
        """The token's text; bytes that are no whole character become U+FFFD."""
        known = self._known(token)
        return f"token_id:{token}" if known is None else known.token_text(token)

    def bytes(self, token: int) -> list[int] | None:
        """The bytes that the token adds to a text, which may be part of a character."""
        known = self._known(token)
        return None if known is None else list(known.token_bytes(token))

    def _known(self, token: int) -> Tokenizer | None:
        """The tokenizer, if it knows the token: a model's vocabulary may be padded past the tokenizer's."""
        return self._tokenizer if self._tokenizer is not None and token < self._tokenizer.vocab_size else None

    def chat(self, positions: Sequence[Position], top: int) -> ChatLogprobs:
        """Chat's shape, with `top` alternatives at each position."""
        return ChatLogprobs([self._chat_position(p.logprobs, top) for p in positions])

    def _chat_position(self, at: TokenLogprobs, top: int) -> ChatLogprob:
        pairs = list(zip(at.top_ids, at.top_logprobs, strict=True))[:top]
        likely = [TopLogprob(self.text(i), finite(p), self.bytes(i)) for i, p in pairs]
        return ChatLogprob(self.text(at.token_id), finite(at.logprob), self.bytes(at.token_id), likely)

    def completion(self, positions: Sequence[Position], top: int, *, shift: int = 0) -> CompletionLogprobs:
        """Completions' shape. `shift` is added to the offsets: the length of an echoed prompt."""
        lists = CompletionLogprobs([], [], [], [])
        for position in positions:
            self._append(lists, position.logprobs, position.offset + shift, top)
        return lists

    def echoed(
        self, prompt_ids: Sequence[int], logprobs: Sequence[TokenLogprobs], top: int, *, skip_special: bool
    ) -> CompletionLogprobs:
        """Completions' shape for a prompt; `logprobs` has one entry for each token from the second on."""
        lists = CompletionLogprobs([0], [None], [self.text(prompt_ids[0])], [None])
        ruler = None
        length = 0
        if self._tokenizer is not None:
            ruler = Detokenizer(self._tokenizer, [], skip_special=skip_special)
            length = len(ruler.push(prompt_ids[:1]).text)
        for at in logprobs:
            self._append(lists, at, length, top)
            if ruler is not None:
                length += len(ruler.push([at.token_id]).text)
        return lists

    def _append(self, lists: CompletionLogprobs, at: TokenLogprobs, offset: int, top: int) -> None:
        lists.text_offset.append(offset)
        lists.tokens.append(self.text(at.token_id))
        lists.token_logprobs.append(finite(at.logprob))
        pairs = list(zip(at.top_ids, at.top_logprobs, strict=True))[:top]
        likely: dict[str, float] = {}
        # Different ids can have one text: the likelier one, which comes first, keeps it. The chosen token is always in.
        for token, logprob in [*pairs, (at.token_id, at.logprob)]:
            likely.setdefault(self.text(token), finite(logprob))
        lists.top_logprobs.append(likely)

    def prompt(self, logprobs: Sequence[TokenLogprobs], top: int) -> PromptLogprobs:
        """vLLM's prompt_logprobs: null, then the likeliest tokens and the prompt's own at each position, by id."""
        entries: PromptLogprobs = [None]
        for at in logprobs:
            ranked = list(zip(at.top_ids, at.top_logprobs, range(1, len(at.top_ids) + 1), strict=True))[:top]
            here = {str(i): PromptLogprob(finite(p), rank, self.text(i)) for i, p, rank in ranked}
            here[str(at.token_id)] = PromptLogprob(finite(at.logprob), at.rank, self.text(at.token_id))
            entries.append(here)
        return entries
