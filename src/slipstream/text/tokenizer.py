"""One tokenizer type for every checkpoint: text to ids and back, token by token where need be. No JAX."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from slipstream.errors import CheckpointError, RequestError
from slipstream.spec.tokenizer import TokenizerSpec
from slipstream.text import from_clip, from_gguf, from_unigram
from slipstream.text.chat import ChatTemplates
from slipstream.text.extent import most_characters
from slipstream.text.pieces import PIECE_BYTES, decoding_of

Message = Mapping[str, Any]


def load_tokenizer(spec: TokenizerSpec) -> Tokenizer:
    """The tokenizer that a checkpoint describes. Raises CheckpointError for one that cannot be read or built."""
    parts: tuple[tuple[Any, Callable[[Any], Backend]], ...] = (
        (spec.tokenizer_json, _read),
        (spec.vocab, from_gguf.build),
        (spec.clip, from_clip.build),
        (spec.unigram, from_unigram.build),
    )
    given = [(data, build) for data, build in parts if data is not None]
    if len(given) != 1:
        raise CheckpointError("a tokenizer needs either a tokenizer.json or one vocabulary")
    (data, build), *_ = given
    backend = build(data)
    return Tokenizer(
        backend, special=spec.special, add_bos=spec.add_bos, add_eos=spec.add_eos, templates=spec.chat_templates
    )


def _read(path: Path) -> Backend:
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for each kind of bad file
        raise CheckpointError(f"{path} cannot be read as a tokenizer: {error}") from error
    # A served prompt is neither cut nor filled up, whatever the file was saved with.
    backend.no_truncation()
    backend.no_padding()
    return backend


class Tokenizer:
    """Text to token ids and back.

    `encode` runs outside Python's global lock, so that a thread can encode a long text while others go on.
    Special tokens that are spelled out in a text are read as those tokens, as transformers does.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        special: Mapping[str, str] | None = None,
        add_bos: bool | None = None,
        add_eos: bool | None = None,
        templates: Mapping[str, str] | None = None,
    ) -> None:
        """`special`: role to token text. `add_bos`, `add_eos`: None leaves both to the backend's post-processor.

        `most_characters` is the most text, in characters, that one token stands for; None where there is no bound.
        """
        self._backend = backend
        self.special_tokens: dict[str, str] = {
            role: text for role, text in (special or {}).items() if backend.token_to_id(text) is not None
        }
        _mark_special(backend, self.special_tokens.values())
        self.decoding = decoding_of(backend)
        added = backend.get_added_tokens_decoder()
        self.most_characters = most_characters(backend, self.decoding.kind)
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.vocab_size = max([backend.get_vocab_size(with_added_tokens=False), *(i + 1 for i in added)])
        self.bos_token_id = self._role("bos")
        self.eos_token_id = self._role("eos")
        self.chat_templates = ChatTemplates(templates or {}, self.special_tokens)
        self._own_ends = add_bos is not None or add_eos is not None
        self._before = self._end(add_bos, self.bos_token_id)
        self._after = self._end(add_eos, self.eos_token_id)

    def _role(self, role: str) -> int | None:
        text = self.special_tokens.get(role)
        return None if text is None else self._backend.token_to_id(text)

    @staticmethod
    def _end(wanted: bool | None, token: int | None) -> list[int]:
        return [token] if wanted and token is not None else []

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Ids of `text`; `add_special` adds bos and eos as the checkpoint asks.

        Raises RequestError for text that is not valid Unicode (a lone surrogate).
        """
        try:
            # The library's `encode` holds the lock while it works; its batch form does not, and skips the offsets too.
            (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special and not self._own_ends)
            ids: list[int] = encoding.ids
        except TypeError:
            _refuse_surrogates(text)
            raise
        return [*self._before, *ids, *self._after] if add_special and self._own_ends else ids

    def encode_cut(self, text: str, *, add_special: bool = True, most: int | None) -> list[int]:
        """`encode`, cut to the first `most` ids (None: not cut); special tokens at the end are kept."""
        ids = self.encode(text, add_special=add_special)
        if most is None or len(ids) <= most:
            return ids
        plain = self.encode(text, add_special=False)
        special = len(ids) - len(plain) if add_special else 0
        if not special:
            return ids[:most]
        # How many of the tokens that were added stand behind the text.
        behind = next(n for n in range(special + 1) if ids[special - n : len(ids) - n] == plain)
        kept = max(0, most - special)
        return [*ids[: special - behind + kept], *ids[len(ids) - behind :]][:most]

    def encode_pair(self, first: str, second: str, *, most: int | None) -> tuple[list[int], int | None]:
        """Ids of two texts as one input, and where the second begins if the model tells them apart, else None.

        Over `most` ids, the second text is cut at its end, then the first. Raises RequestError as `encode` does.
        """
        try:
            one, other = self._backend.encode_batch_fast([first, second], add_special_tokens=False)
        except TypeError:
            _refuse_surrogates(first + second)
            raise
        if most is not None:
            room = max(0, most - self._backend.num_special_tokens_to_add(True))
            other.truncate(max(0, min(len(other.ids), room - len(one.ids))))
            one.truncate(min(len(one.ids), room))
        joined = self._backend.post_process(one, other, add_special_tokens=True)
        types: list[int] = joined.type_ids
        return list(joined.ids), types.index(1) if 1 in types else None

    def encode_chat(self, text: str) -> list[int]:
        """Ids of a rendered chat. Its template has written bos where the model wants one, so none is added."""
        return self.encode(text, add_special=False)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; bytes that form no character become U+FFFD. Raises RequestError for an id out of range."""
        self._check(ids)
        return str(self._backend.decode(ids, skip_special_tokens=skip_special))

    def token_text(self, token: int) -> str:
        """What a list of tokens shows for one: its text, with U+FFFD for bytes that are no whole character."""
        return self.token_bytes(token).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that the token adds to a text (UTF-8, maybe part of a character); a space for U+2581.

        Raises RequestError for an id out of range.
        """
        self._check((token,))
        return PIECE_BYTES[self.decoding.kind](self.piece(token) or "", self.decoding)

    def piece(self, token: int) -> str | None:
        """The token as the vocabulary spells it; None for an id without one (a padded vocabulary has such)."""
        return self._backend.id_to_token(token)

    def token_id(self, piece: str) -> int | None:
        """The id of a token as the vocabulary spells it."""
        return self._backend.token_to_id(piece)

    def bad_word_ids(self, word: str) -> list[list[int]]:
        """The ids that spell `word`: at the start of a text, and after a space where that differs."""
        plain, spaced = self._inside(word.lstrip(" ")), self._inside(" " + word.lstrip(" "))
        return [ids for ids in ([spaced] if plain == spaced else [plain, spaced]) if ids]

    def _inside(self, text: str) -> list[int]:
        """Ids of `text` as it is spelled in the middle of a line, where no tokenizer puts a space before it."""
        anchor = "\n"
        before = self.encode(anchor, add_special=False)
        both = self.encode(anchor + text, add_special=False)
        return both[len(before) :] if both[: len(before)] == before else self.encode(text, add_special=False)

    @property
    def has_chat_template(self) -> bool:
        """Whether the checkpoint came with a chat template."""
        return bool(self.chat_templates)

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The conversation as the model was trained to read it; see `ChatTemplates.render`."""
        return self.chat_templates.render(
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=kwargs,
        )

    def _check(self, ids: Iterable[int]) -> None:
        wrong = next((i for i in ids if not 0 <= i < self.vocab_size), None)
        if wrong is not None:
            raise RequestError(
                f"token id {wrong} is outside the vocabulary of {self.vocab_size}", code="invalid_token_id"
            )


def _refuse_surrogates(text: str) -> None:
    """Raises RequestError where `text` has no UTF-8: the library then says only that it wants a string."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"the text is not valid Unicode: {error.reason} at character {error.start}") from error


def _mark_special(backend: Backend, texts: Iterable[str]) -> None:
    """A token with a role is special even where tokenizer.json lists it as an ordinary one."""
    known = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    missing = [AddedToken(text, normalized=False, special=True) for text in texts if text not in known]
    if missing:
        backend.add_special_tokens(missing)
