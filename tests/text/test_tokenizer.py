"""Loading from both kinds of data, bos and eos, single tokens, bad words, and clear errors for what is damaged."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slipstream.errors import CheckpointError, RequestError
from slipstream.spec.tokenizer import GgufVocab, TokenizerSpec
from slipstream.text import Tokenizer, load_tokenizer
from slipstream.text.pieces import BYTE_OF
from tests.text.conftest import GOLDEN, loaded, tiny_llama, tiny_llama_vocab

BYTE_LEVEL = GOLDEN / "byte_level.tokenizer.json"


def tiny_bpe(**changes: Any) -> GgufVocab:
    tokens = (*BYTE_OF, "ab", "abc", "Ġa", "<end>", "<tool>", "A  B")
    fields: dict[str, Any] = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "types": (1,) * 259 + (3, 4, 4),
        "merges": ("a b", "ab c", "Ġ a"),
    }
    return GgufVocab(**{**fields, **changes})


@pytest.mark.parametrize(
    ("add_bos", "add_eos", "ends"),
    [(True, False, ([1], [])), (False, None, ([], [])), (True, True, ([1], [2])), (None, True, ([], [2]))],
)
def test_bos_and_eos_are_added_as_the_checkpoint_asks(
    add_bos: bool | None, add_eos: bool | None, ends: tuple[list[int], list[int]]
) -> None:
    tokenizer = load_tokenizer(replace(tiny_llama(), add_bos=add_bos, add_eos=add_eos))
    inside = tokenizer.encode("the fox", add_special=False)
    assert tokenizer.encode("the fox") == [*ends[0], *inside, *ends[1]]
    assert tokenizer.encode("") == [*ends[0], *ends[1]]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_a_tokenizer_json_s_own_post_processor_works_where_nothing_is_said() -> None:
    spec = TokenizerSpec(tokenizer_json=BYTE_LEVEL, special={"bos": "<|bos|>", "eos": "<|eos|>"})
    own, none, both = (
        load_tokenizer(one) for one in (spec, replace(spec, add_bos=False), replace(spec, add_bos=True, add_eos=True))
    )
    inside = own.encode("the", add_special=False)
    assert own.encode("the") == [0, *inside]
    assert none.encode("the") == inside
    assert both.encode("the") == [0, *inside, 1]


def test_truncation_and_padding_that_a_file_was_saved_with_are_off(tmp_path: Path) -> None:
    data = json.loads(BYTE_LEVEL.read_text())
    data["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    data["padding"] = {
        "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 1, "pad_type_id": 0, "pad_token": "<|eos|>",
    }  # fmt: skip
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data))
    tokenizer = load_tokenizer(TokenizerSpec(tokenizer_json=path))
    plain = loaded("byte_level")
    for text in ("a", "a much longer text than four tokens"):
        assert tokenizer.encode(text) == plain.encode(text)


def test_a_token_with_a_role_is_special() -> None:
    ordinary = "Ġthe"
    tokenizer = load_tokenizer(TokenizerSpec(tokenizer_json=BYTE_LEVEL, special={"eos": ordinary, "pad": "<no such>"}))
    assert tokenizer.token_id(ordinary) in tokenizer.special_ids
    assert tokenizer.decode(tokenizer.encode("x the y", add_special=False)) == "x y"
    assert tokenizer.special_tokens == {"eos": ordinary}
    assert tokenizer.vocab_size == loaded("byte_level").vocab_size


def test_control_and_user_defined_tokens_stay_whole() -> None:
    tokenizer = load_tokenizer(TokenizerSpec(vocab=tiny_bpe()))
    ids = tokenizer.encode("abc<end>a<tool>A  B a")
    assert [tokenizer.piece(i) for i in ids] == ["abc", "<end>", "a", "<tool>", "A  B", "Ġa"]
    assert tokenizer.decode(ids) == "abca<tool>A  B a"
    assert tokenizer.decode(ids, skip_special=False) == "abc<end>a<tool>A  B a"


def test_single_tokens_as_text_and_bytes() -> None:
    smollm2, gemma3 = loaded("smollm2"), loaded("gemma3")
    first, second = smollm2.encode("你")[:2]
    assert smollm2.token_bytes(first) + smollm2.token_bytes(second) == "你".encode()
    assert smollm2.token_text(first) == "\ufffd"
    assert smollm2.token_text(smollm2.encode(" the")[0]) == " the"
    assert smollm2.token_text(2) == "<|im_end|>"
    byte = gemma3.token_id("<0xE4>")
    assert byte is not None
    assert gemma3.token_bytes(byte) == b"\xe4"
    assert gemma3.token_text(gemma3.encode("a  b", add_special=False)[1]) == "  "


def test_every_token_has_bytes(tokenizer: Tokenizer) -> None:
    assert all(tokenizer.token_bytes(token) for token in range(min(tokenizer.vocab_size, 2000)))


@pytest.mark.parametrize("token", [-1, 49152, 10**9])
def test_ids_out_of_range_are_refused(token: int) -> None:
    tokenizer = loaded("smollm2")
    for call in (lambda: tokenizer.decode([1, token]), lambda: tokenizer.token_text(token)):
        with pytest.raises(RequestError, match=rf"token id {token} is outside the vocabulary of 49152"):
            call()


def test_other_threads_go_on_while_a_long_text_is_encoded() -> None:
    tokenizer, turns, done = loaded("smollm2"), 0, threading.Event()

    def tick() -> None:
        nonlocal turns
        while not done.wait(0.001):
            turns += 1

    ticker = threading.Thread(target=tick)
    ticker.start()
    before = turns
    assert len(tokenizer.encode("1" * 300_000)) == 300_000
    during = turns - before
    done.set()
    ticker.join()
    assert during > 10  # one or two where the lock is held


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(RequestError, match="not valid Unicode"):
        loaded("smollm2").encode("a\ud800b")


@pytest.mark.parametrize("name", ["smollm2", "gemma3", "tiny_llama", "legacy", "byte_level"])
def test_bad_words_are_spelled_at_the_start_and_after_a_space(name: str) -> None:
    tokenizer = loaded(name)
    spellings = tokenizer.bad_word_ids("the")
    texts = [b"".join(map(tokenizer.token_bytes, ids)) for ids in spellings]
    assert texts == [b"the", b" the"]
    assert tokenizer.bad_word_ids(" the") == spellings
    ids = tokenizer.encode("x the", add_special=False)
    assert ids[-len(spellings[1]) :] == spellings[1]


def test_threads_share_a_tokenizer() -> None:
    tokenizer = loaded("smollm2")
    texts = [f"thread {i} " * 50 for i in range(64)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tokenizer.encode, texts)) == [tokenizer.encode(text) for text in texts]


def test_a_space_goes_before_a_sentencepiece_text_unless_the_file_says_no() -> None:
    with_space = load_tokenizer(tiny_llama())
    without = load_tokenizer(replace(tiny_llama(), vocab=tiny_llama_vocab(add_space_prefix=False)))
    assert with_space.piece(with_space.encode("the", add_special=False)[0]) == "▁the"
    assert without.piece(without.encode("the", add_special=False)[0]) != "▁the"
    for tokenizer in (with_space, without):
        assert tokenizer.decode(tokenizer.encode("the fox")) == "the fox"
    ids = without.encode(" the fox")
    assert without.decode(ids) == " the fox"


def test_bytes_spelled_out_are_no_bytes() -> None:
    tokenizer = loaded("tiny_llama")
    ids = tokenizer.encode("<0x41>")
    assert tokenizer.decode(ids) == "<0x41>"
    assert tokenizer.token_id("<0x41>") not in ids


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        (tiny_bpe(model="bert"), r"tokenizer.ggml.model is 'bert'; known: gpt2, llama"),
        (tiny_bpe(pre="tiktok"), "tokenizer.ggml.pre is 'tiktok'.*Known: .*smollm.*tokenizer.json"),
        (tiny_bpe(merges=None), "needs tokenizer.ggml.merges"),
        (tiny_bpe(merges=("a b", "b nothing")), "do not fit its tokens"),
        (tiny_bpe(merges=("ab",)), "'ab', which is not two tokens"),
        (tiny_bpe(types=(1,)), "262 tokens but 1 token types"),
        (tiny_bpe(tokens=("a", "b", "a"), types=(1, 1, 1), merges=()), "same token at several ids: 'a'"),
        (tiny_llama_vocab(tokens=("x" * 10**6,), types=(1,), scores=(0.0,)), "a piece of 1000000 characters"),
        (tiny_llama_vocab(scores=None), "one score .* for each token"),
        (tiny_llama_vocab(scores=(0.0,)), "one score .* for each token"),
    ],
)
def test_a_vocabulary_that_cannot_work_is_a_checkpoint_error(vocab: GgufVocab, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(TokenizerSpec(vocab=vocab))


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"model": {"type": "Nonsense"}}', "\x00\xff"])
def test_a_damaged_tokenizer_json_is_a_checkpoint_error(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(TokenizerSpec(tokenizer_json=path))


def test_a_spec_names_exactly_one_source() -> None:
    for spec in (TokenizerSpec(), TokenizerSpec(tokenizer_json=BYTE_LEVEL, vocab=tiny_bpe())):
        with pytest.raises(CheckpointError, match=r"either a tokenizer\.json or one vocabulary"):
            load_tokenizer(spec)
