"""T5's tokenizer from its SentencePiece model (Kudo and Richardson 2018, arXiv:1808.06226)."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from slipstream.errors import CheckpointError
from slipstream.spec.tokenizer import UnigramVocab

END = "</s>"
SENTINELS = 100
"""Tokens <extra_id_99> to <extra_id_0>, which T5 has behind the pieces of the file."""


def build(vocab: UnigramVocab) -> Tokenizer:
    """The tokenizer. Raises CheckpointError for a vocabulary that cannot be one, or has no token for a text's end."""
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(SENTINELS))]
    pieces = [*vocab.pieces, *((token, 0.0) for token in sentinels)]
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    if END not in ids:
        raise CheckpointError(f"spiece.model has no piece {END}: it is not T5's")
    try:
        tokenizer = Tokenizer(models.Unigram(pieces, vocab.unknown, False))
        if vocab.charsmap is not None:
            tokenizer.normalizer = normalizers.Precompiled(vocab.charsmap)
    except Exception as error:  # the library raises bare Exception for each kind of bad data
        raise CheckpointError(f"spiece.model cannot be read as a tokenizer: {error}") from error
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single=["$A", END], special_tokens=[(END, ids[END])])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in sentinels])
    return tokenizer
