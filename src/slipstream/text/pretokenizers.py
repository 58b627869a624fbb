"""How byte-level BPE vocabularies cut text into words before merging, by GGUF's names (`tokenizer.ggml.pre`).

A rule here is what the model's published tokenizer.json does, which is what its merges were learned on; llama.cpp's
names are the keys. `digits` cuts every digit from its neighbours. Patterns are Oniguruma's.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_WORDS = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s",
)

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_MARKS}|{_SPACES}"
QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_MARKS}|{_SPACES}"
QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
TEKKEN = "|".join(
    [_CASED_WORDS[0] % "", _CASED_WORDS[1] % "", r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", _SPACES],
)
O200K = "|".join(
    [
        _CASED_WORDS[0] % f"{_CONTRACTIONS}?",
        _CASED_WORDS[1] % f"{_CONTRACTIONS}?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        _SPACES,
    ]
)
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
SEED = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_KANA_HAN = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"


@dataclass(frozen=True)
class SplitRule:
    """How a family splits. `patterns` apply in order, each to the pieces that the one before left.

    `digits` first isolates each digit. `ignore_merges`: a word that is in the vocabulary as it is takes that id, even
    where merges lead elsewhere. `nfc`: text is brought to Unicode's composed form first.
    """

    patterns: tuple[str, ...]
    digits: bool = False
    punctuation: bool = False
    ignore_merges: bool = False
    nfc: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The splits in order, then bytes to the printable alphabet."""
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.punctuation:
            steps.append(pre_tokenizers.Punctuation("contiguous"))
        if self.digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        steps += [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    def normalizer(self) -> normalizers.Normalizer | None:
        """NFC or nothing."""
        return normalizers.NFC() if self.nfc else None


_GPT2 = SplitRule((GPT2,))
_NEOX = SplitRule((GPT2,), nfc=True)
_DIGITS = SplitRule((GPT2,), digits=True)
_LLAMA3 = SplitRule((CL100K,), ignore_merges=True)
_CL100K = SplitRule((CL100K,))
_QWEN2 = SplitRule((QWEN2,), nfc=True)
_PLAIN_QWEN2 = SplitRule((QWEN2,))
_O200K = SplitRule((O200K,))
_DEEPSEEK3 = SplitRule((r"\p{N}{1,3}", _KANA_HAN, DEEPSEEK3))
_BLOOM = SplitRule((BLOOM,))
_BAILING = SplitRule((BAILING,))

RULES: dict[str, SplitRule] = {
    # Files older than `tokenizer.ggml.pre` say nothing or "default"; GPT-2's own rule is what most of them need.
    "default": _GPT2,
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "jais": _GPT2,
    "exaone4": _GPT2,
    "trillion": _GPT2,
    "granite-docling": _GPT2,
    "gigachat": _GPT2,
    "mellum": _GPT2,
    "a.x-4.0": _GPT2,
    "mpt": _NEOX,
    "olmo": _NEOX,
    "modern-bert": _NEOX,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "codeshell": _DIGITS,
    "exaone": _DIGITS,
    "minerva-7b": _DIGITS,
    "mellum2": _DIGITS,
    "command-r": SplitRule((GPT2,), digits=True, nfc=True),
    "falcon": SplitRule((GPT2, r"\p{N}+", "[0-9][0-9][0-9]"), punctuation=True),
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "falcon3": _LLAMA3,
    "falcon-h1": _LLAMA3,
    "pixtral": _LLAMA3,
    "midm-2.0": _LLAMA3,
    "lfm2": _LLAMA3,
    "dbrx": _CL100K,
    "smaug-bpe": _CL100K,
    "glm4": _CL100K,
    "chatglm-bpe": _CL100K,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "megrez": _QWEN2,
    "qwen35": SplitRule((QWEN35,), nfc=True),
    "stablelm2": _PLAIN_QWEN2,
    "hunyuan": _PLAIN_QWEN2,
    "solar-open": _PLAIN_QWEN2,
    "grok-2": _PLAIN_QWEN2,
    "kormo": _PLAIN_QWEN2,
    "seed-coder": SplitRule((SEED,)),
    "tekken": SplitRule((TEKKEN,), ignore_merges=True),
    "gpt-4o": _O200K,
    "llama4": _O200K,
    "kanana2": _O200K,
    "minimax-m2": _O200K,
    "deepseek-v3": _DEEPSEEK3,
    "hunyuan-dense": _DEEPSEEK3,
    "joyai-llm": _DEEPSEEK3,
    "deepseek-coder": SplitRule(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    "bailingmoe": _BAILING,
    "bailingmoe2": _BAILING,
    "llada-moe": _BAILING,
    "bloom": _BLOOM,
    "gpt3-finnish": _BLOOM,
    "poro-chat": _BLOOM,
    "viking": SplitRule((BLOOM,), digits=True),
}
