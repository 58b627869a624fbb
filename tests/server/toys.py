"""A tokenizer whose tokens are bytes, and a few words, so that every test can say what its tokens are."""

from __future__ import annotations

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from slipstream.text import Tokenizer

EOS = "<|end|>"
BOS = "<|begin|>"
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'function' %}{{ raise_exception('no functions here') }}{% endif %}"
    "[{{ m.role }}:{{ m.content }}]{% endfor %}"
    "{% if tools %}{tools:{{ tools | length }}}{% endif %}{% if mood %}{mood:{{ mood }}}{% endif %}"
    "{% if add_generation_prompt %}[assistant:{% endif %}"
)


def toy_tokenizer(*, template: str | None = TEMPLATE) -> Tokenizer:
    """Ids 0..255 are the bytes in GPT-2's order, then BOS and EOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (BOS, EOS)])
    return Tokenizer(
        backend,
        special={"bos": BOS, "eos": EOS},
        add_bos=True,
        add_eos=False,
        templates={} if template is None else {"default": template},
    )


TOKENIZER = toy_tokenizer()
BOS_ID = TOKENIZER.bos_token_id
EOS_ID = TOKENIZER.eos_token_id


def ids(text: str) -> list[int]:
    """The toy's tokens of a text, without BOS."""
    return TOKENIZER.encode(text, add_special=False)
