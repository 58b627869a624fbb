"""Tokenizers from the vocabulary that a GGUF file carries in its metadata."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from itertools import islice

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from slipstream.errors import CheckpointError
from slipstream.spec.tokenizer import GgufVocab
from slipstream.text.merge_cache import cached_merges
from slipstream.text.pretokenizers import RULES, SplitRule

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"
# Real pieces have at most some dozens of characters; the ways to cut one grow with the square of its length.
LONGEST_PIECE = 1024


def build(vocab: GgufVocab) -> Tokenizer:
    """The tokenizer of `vocab`, without a post-processor (bos and eos are added by `text.tokenizer`).

    Raises CheckpointError for a vocabulary that is inconsistent or of a kind that is not known.
    """
    if len(vocab.types) != len(vocab.tokens):
        raise CheckpointError(f"the vocabulary has {len(vocab.tokens)} tokens but {len(vocab.types)} token types")
    maker = _MAKERS.get(vocab.model)
    if maker is None:
        raise CheckpointError(f"tokenizer.ggml.model is {vocab.model!r}; known: {', '.join(sorted(_MAKERS))}")
    return maker(vocab)


def split_rule(pre: str | None) -> SplitRule:
    """The rule of that name. Raises CheckpointError naming the known ones."""
    rule = RULES.get(pre or "default")
    if rule is None:
        near = difflib.get_close_matches(str(pre), RULES, n=1)
        hint = f" (nearest: {near[0]})" if near else ""
        raise CheckpointError(
            f"tokenizer.ggml.pre is {pre!r}{hint}, and how it splits text is not known here. "
            f"Known: {', '.join(sorted(RULES))}. Serve the checkpoint with its tokenizer.json instead."
        )
    return rule


def _byte_level(vocab: GgufVocab) -> Tokenizer:
    """BPE over GPT-2's printable byte alphabet (GGUF's `gpt2`)."""
    rule = split_rule(vocab.pre)
    if vocab.merges is None:
        raise CheckpointError("a gpt2 vocabulary needs tokenizer.ggml.merges, and the file has none")
    ids = _ids(vocab.tokens)
    merges = [_halves(merge) for merge in vocab.merges]
    try:
        model = models.BPE(vocab=ids, merges=merges, ignore_merges=rule.ignore_merges)
    except Exception as error:  # the library raises bare Exception for a merge of unknown tokens
        raise CheckpointError(f"the vocabulary's merges do not fit its tokens: {error}") from error
    tokenizer = Tokenizer(model)
    normalizer = rule.normalizer()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = rule.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, vocab.tokens, vocab.types)
    return tokenizer


def _sentencepiece(vocab: GgufVocab) -> Tokenizer:
    """SentencePiece BPE with scores and byte fallback (GGUF's `llama`: Llama 1 and 2, Mistral, Gemma)."""
    if vocab.scores is None or len(vocab.scores) != len(vocab.tokens):
        raise CheckpointError("a llama vocabulary needs one score in tokenizer.ggml.scores for each token")
    # GGUF writers spell user-defined runs of spaces with real spaces; the pieces are made of U+2581.
    tokens = [
        token.replace(" ", SPACE) if kind == USER_DEFINED and not token.strip(" ") else token
        for token, kind in zip(vocab.tokens, vocab.types, strict=True)
    ]
    ids = _ids(tokens)
    # User-defined pieces win over all others in SentencePiece; GGUF writers overwrite their scores with -1000. Control
    # and byte pieces are never formed from text.
    pieces = [
        (token, float("inf") if kind == USER_DEFINED else score)
        for token, kind, score in zip(tokens, vocab.types, vocab.scores, strict=True)
        if kind in (NORMAL, USER_DEFINED, UNUSED)
    ]
    longest = max((piece for piece, _ in pieces), key=len, default="")
    if len(longest) > LONGEST_PIECE:
        raise CheckpointError(
            f"the vocabulary has a piece of {len(longest)} characters; at most {LONGEST_PIECE} are read"
        )
    unknown = next((t for t, kind in zip(tokens, vocab.types, strict=True) if kind == UNKNOWN), None)
    if unknown is None and "<unk>" in ids:  # some writers mark it as a control token
        unknown = "<unk>"
    model = models.BPE(
        vocab=ids,
        merges=cached_merges(pieces),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    prefix = vocab.add_space_prefix is not False
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        SPACE, prepend_scheme="first" if prefix else "never", split=False
    )
    strip = [decoders.Strip(" ", left=1, right=0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    _add_tokens(tokenizer, tokens, vocab.types)
    return tokenizer


def _ids(tokens: tuple[str, ...] | list[str]) -> dict[str, int]:
    """Token -> id. Raises CheckpointError where one text has two ids."""
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        twice = list(islice((token for i, token in enumerate(tokens) if ids[token] != i), 3))
        raise CheckpointError(f"the vocabulary has the same token at several ids: {', '.join(map(repr, twice))}")
    return ids


def _halves(merge: str) -> tuple[str, str]:
    """The two tokens of a merge. The byte alphabet has no space, so one parts them. Raises CheckpointError."""
    left, _, right = merge.partition(" ")
    if not left or not right:
        raise CheckpointError(f"tokenizer.ggml.merges holds {merge!r}, which is not two tokens with a space between")
    return left, right


def _add_tokens(tokenizer: Tokenizer, tokens: tuple[str, ...] | list[str], types: tuple[int, ...]) -> None:
    """Make control tokens special and keep both them and user-defined ones whole wherever they stand in a text."""
    marked = [
        (token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    special = [AddedToken(token, normalized=False, special=True) for token, kind in marked if kind != USER_DEFINED]
    plain = [AddedToken(token, normalized=False, special=False) for token, kind in marked if kind == USER_DEFINED]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)


_MAKERS: dict[str, Callable[[GgufVocab], Tokenizer]] = {"gpt2": _byte_level, "llama": _sentencepiece}
