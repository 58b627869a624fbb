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
# The cased letters that DeepSeek LLM splits on, as ranges of code points: not all that Unicode has.
_CASED = (
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A "
    "38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF "
    "1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D "
    "1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 "
    "1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F "
    "2145-2149 214E 2183-2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2-2CF3 A640-A66D A680-A69B A722-A76F "
    "A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 "
    "104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_KANA_HAN = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"


def _character_class(ranges: str) -> str:
    """`41-5A B5` as `[A-Z\u00b5]`."""
    return "[" + "".join("-".join(chr(int(end, 16)) for end in part.split("-")) for part in ranges.split()) + "]"


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
    "deepseek-llm": SplitRule(
        (
            "[\r\n]",
            rf"\s?{_character_class(_CASED)}+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+$",
            _CJK,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": SplitRule(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    "bailingmoe": _BAILING,
    "bailingmoe2": _BAILING,
    "llada-moe": _BAILING,
    "bloom": _BLOOM,
    "gpt3-finnish": _BLOOM,
    "poro-chat": _BLOOM,
    "viking": SplitRule((BLOOM,), digits=True),
}
