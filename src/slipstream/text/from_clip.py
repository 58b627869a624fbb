"""CLIP's tokenizer from vocab.json and merges.txt, which are all that many image models have of it.

Radford et al. 2021 (arXiv:2103.00020): byte-level BPE in lower case, where the last token of a word has a mark. Most
runs of letters are a word, digits are words of one, and white space only parts words.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from slipstream.errors import CheckpointError
from slipstream.spec.tokenizer import ClipVocab

START, END = "<|startoftext|>", "<|endoftext|>"
WORD = "|".join(
    (
        *(token.replace("|", r"\|") for token in (START, END)),
        *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d"),
        r"[\p{L}]+",
        r"[\p{N}]",
        r"[^\s\p{L}\p{N}]+",
    )
)


def build(vocab: ClipVocab) -> Tokenizer:
    """The tokenizer. Raises CheckpointError for a vocabulary without START and END, or whose merges do not fit it."""
    missing = [token for token in (START, END) if token not in vocab.ids]
    if missing:
        raise CheckpointError(f"vocab.json has no {missing[0]}: it is not CLIP's")
    try:
        model = models.BPE(vocab=dict(vocab.ids), merges=list(vocab.merges), end_of_word_suffix="</w>", unk_token=END)
    except Exception as error:  # the library raises bare Exception for a merge of unknown tokens
        raise CheckpointError(f"merges.txt does not fit vocab.json: {error}") from error
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[START, "$A", END], special_tokens=[(token, vocab.ids[token]) for token in (START, END)]
    )
    return tokenizer
