"""Record what transformers' tokenizers make of a multilingual corpus: tests/golden/tokenizers/*.json.

Run with `python -m tests.golden.make_tokenizers` where transformers, sentencepiece and the built-in models are at hand.
It also trains the tiny vocabularies that the tests build tokenizers from. `tests/parity/test_tokenizers.py` makes the
same comparison live.

Where transformers itself is not the judge:
- Its own loading of a GGUF splits SmolLM2's text by GPT-2's rule (the file's `smollm` is in no table of it), so digits
  stick together. Here its tokenizer gets the pre-tokenizer that SmolLM2's published tokenizer.json has.
- Its own loading of a Gemma GGUF ranks merges by position in the vocabulary, which puts the runs of two spaces before
  those of three; runs of more than 31 spaces then split differently from SentencePiece. Here the merges come from the
  scores, with the user-defined pieces first (the file's writer overwrote their scores), and SentencePiece itself, fed
  with the same vocabulary, must agree on every text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sentencepiece
import transformers
from sentencepiece import sentencepiece_model_pb2 as spm_proto
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GemmaTokenizer, GPT2Tokenizer, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

from slipstream.checkpoint import open_checkpoint, resolve
from slipstream.spec.tokenizer import GgufVocab, TokenizerSpec
from tests.golden.corpus import CORPUS, TRAINING

FOLDER = Path(__file__).parent / "tokenizers"
BUILTIN = {"smollm2": "smollm2-135m", "gemma3": "gemma3-270m"}


def builtin_spec(name: str) -> TokenizerSpec:
    """The tokenizer data of a built-in model's GGUF."""
    spec = open_checkpoint(resolve(BUILTIN[name])).tokenizer
    assert spec is not None
    return spec


def smollm2(spec: TokenizerSpec) -> Any:
    """transformers' tokenizer with SmolLM2's published split: each digit apart, then GPT-2's words."""
    vocab = spec.vocab
    assert vocab is not None and vocab.merges is not None
    ids = {token: i for i, token in enumerate(vocab.tokens)}
    tokenizer = GPT2Tokenizer(
        vocab=ids,
        merges=[tuple(merge.split(" ")) for merge in vocab.merges],
        bos_token=None,
        eos_token=None,
        unk_token=None,
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    _add(tokenizer, vocab)
    return tokenizer


def gemma3(spec: TokenizerSpec) -> Any:
    """transformers' GemmaTokenizer with the merges that its conversion of a SentencePiece model makes."""
    assert spec.vocab is not None
    vocab, ids, merges = _pieces(spec.vocab)
    tokenizer = GemmaTokenizer(vocab=ids, merges=merges)
    _add(tokenizer, vocab)
    return tokenizer


def tiny_llama(spec: TokenizerSpec) -> Any:
    """transformers' LlamaTokenizer, as it comes."""
    assert spec.vocab is not None
    vocab, ids, merges = _pieces(spec.vocab)
    tokenizer = LlamaTokenizer(vocab=ids, merges=merges, add_bos_token=True)
    _add(tokenizer, vocab)
    return tokenizer


REFERENCES: Mapping[str, Callable[[TokenizerSpec], Any]] = {
    "smollm2": smollm2,
    "gemma3": gemma3,
    "tiny_llama": tiny_llama,
}


def _pieces(vocab: GgufVocab) -> tuple[GgufVocab, dict[str, int], list[tuple[str, str]]]:
    tokens = tuple(
        token.replace(" ", "\u2581") if kind == 4 and not token.strip(" ") else token
        for token, kind in zip(vocab.tokens, vocab.types, strict=True)
    )
    ids = {token: i for i, token in enumerate(tokens)}
    assert vocab.scores is not None
    scores = {
        token: 0.0 if kind == 4 else score for token, kind, score in zip(tokens, vocab.types, vocab.scores, strict=True)
    }
    unmade = {token for token, kind in zip(tokens, vocab.types, strict=True) if kind in (2, 3, 6)}
    return (
        GgufVocab(vocab.model, vocab.pre, tokens, vocab.types, vocab.scores),
        ids,
        generate_merges(ids, scores, unmade),
    )


def _add(tokenizer: Any, vocab: GgufVocab) -> None:
    added = transformers.AddedToken
    for kind, special in ((3, True), (4, False)):
        tokens = [
            added(t, normalized=False, special=special)
            for t, k in zip(vocab.tokens, vocab.types, strict=True)
            if k == kind
        ]
        tokenizer.add_tokens(tokens, special_tokens=special)


def sentencepiece_of(spec: TokenizerSpec) -> sentencepiece.SentencePieceProcessor:
    """SentencePiece itself over the same pieces. It reads no control tokens out of texts."""
    vocab = spec.vocab
    assert vocab is not None and vocab.scores is not None
    proto = spm_proto.ModelProto()
    proto.trainer_spec.model_type = spm_proto.TrainerSpec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.vocab_size = len(vocab.tokens)
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = vocab.add_space_prefix is not False
    proto.normalizer_spec.remove_extra_whitespaces = False
    unknown = spec.special["unk"]
    proto.trainer_spec.unk_piece = unknown
    for role in ("bos", "eos", "pad"):
        if role in spec.special:
            setattr(proto.trainer_spec, f"{role}_piece", spec.special[role])
    for token, kind, score in zip(vocab.tokens, vocab.types, vocab.scores, strict=True):
        piece = proto.pieces.add()
        piece.piece = token.replace(" ", "\u2581") if kind == 4 else token
        piece.score = 0.0 if kind == 4 else score
        piece.type = 2 if token == unknown else kind
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())


def train_tiny_llama() -> TokenizerSpec:
    """A SentencePiece BPE vocabulary of 700 pieces with byte fallback, as a GGUF stores it."""
    text = FOLDER / "training.txt"
    text.write_text("\n".join(TRAINING), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(FOLDER / "training"),
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["<tool>", "\u2581\u2581", "\u2581\u2581\u2581"],
        num_threads=1,
        minloglevel=2,
    )
    proto = spm_proto.ModelProto()
    proto.ParseFromString((FOLDER / "training.model").read_bytes())
    for suffix in ("txt", "model", "vocab"):
        (FOLDER / f"training.{suffix}").unlink()
    vocab = GgufVocab(
        "llama",
        "default",
        tuple(p.piece.replace("\u2581", " ") if p.type == 4 else p.piece for p in proto.pieces),
        tuple(p.type for p in proto.pieces),
        tuple(-1000.0 if p.type == 4 else p.score for p in proto.pieces),
    )
    return TokenizerSpec(vocab=vocab, special={"bos": "<s>", "eos": "</s>", "unk": "<unk>"}, add_bos=True)


def train_byte_level() -> Tokenizer:
    """A byte-level BPE of 600 tokens with Llama 3's split and a bos from its post-processor."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        TRAINING,
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=["<|bos|>", "<|eos|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    return tokenizer


def train_legacy() -> Tokenizer:
    """A BPE with byte fallback and the normalizer of Llama 2's published tokenizer.json."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        [word for text in TRAINING for word in text.replace(" ", " \u2581").split(" ")],
        trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False),
    )
    # The trainer made every listed token special; only three are.
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = data["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def record(name: str, made_by: str, encode: Callable[[str], list[int]], decode: Callable[[list[int]], str]) -> None:
    """Write one file: a text, its ids and what they decode to, a line each."""
    cases = []
    for text in CORPUS:
        ids = encode(text)
        cases.append(json.dumps({"text": text, "ids": ids, "decoded": decode(ids)}))
    body = ",\n".join(cases)
    (FOLDER / f"{name}.json").write_text(f'{{"made_by": {json.dumps(made_by)}, "cases": [\n{body}\n]}}\n')


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def main() -> None:
    """Write every file."""
    FOLDER.mkdir(exist_ok=True)
    made_by = f"transformers {transformers.__version__}, sentencepiece {sentencepiece.__version__}"
    tiny = train_tiny_llama()
    vocab = tiny.vocab
    assert vocab is not None
    (FOLDER / "tiny_llama.vocab.json").write_text(
        json.dumps({"tokens": vocab.tokens, "types": vocab.types, "scores": vocab.scores}) + "\n"
    )
    for name, reference in REFERENCES.items():
        spec = tiny if name == "tiny_llama" else builtin_spec(name)
        tokenizer = reference(spec)
        front = [tokenizer.convert_tokens_to_ids(spec.special["bos"])] if spec.add_bos else []

        def encode(text: str, tokenizer: Any = tokenizer, front: list[int] = front) -> list[int]:
            return [*front, *tokenizer.encode(text, add_special_tokens=False)]

        record(name, made_by, encode, lambda ids, tokenizer=tokenizer: _decoded(tokenizer, ids))
    for name, train in (("byte_level", train_byte_level), ("legacy", train_legacy)):
        path = FOLDER / f"{name}.tokenizer.json"
        path.write_text(train().to_str(pretty=False) + "\n", encoding="utf-8")
        fast = PreTrainedTokenizerFast(tokenizer_file=str(path))
        record(name, made_by, fast.encode, lambda ids, fast=fast: _decoded(fast, ids))


if __name__ == "__main__":
    main()
