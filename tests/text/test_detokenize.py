"""Streaming: nothing lost, no half characters, the prompt's place respected, stop strings cut where they should be."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from slipstream.text import Detokenizer, Tokenizer
from slipstream.text.detokenize import REPLACEMENT
from slipstream.text.stops import StopStrings
from tests.text.conftest import SPECS, loaded

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=REPLACEMENT), max_size=30)
NAMES = st.sampled_from(sorted(SPECS))


def streamed(detokenizer: Detokenizer, ids: list[int], cuts: list[int]) -> list[str]:
    """The deltas of pushes that are cut at `cuts`."""
    borders = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    return [detokenizer.push(ids[a:b]).text for a, b in pairwise(borders)] + [detokenizer.finish().text]


@settings(max_examples=400, deadline=None)
@given(NAMES, TEXT, st.lists(st.integers(0, 200), max_size=8), st.booleans())
def test_deltas_join_to_the_decoded_text(name: str, text: str, cuts: list[int], skip: bool) -> None:
    tokenizer = loaded(name)
    ids = tokenizer.encode(text)
    deltas = streamed(Detokenizer(tokenizer, [], skip_special=skip), ids, cuts)
    decoded = tokenizer.decode(ids, skip_special=skip)
    assert "".join(deltas) == decoded
    # SmolLM2's vocabulary lacks a few bytes, so not every text comes back whole.
    assert REPLACEMENT in decoded or not any(REPLACEMENT in delta for delta in deltas)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["smollm2", "byte_level"]), st.data())
def test_any_ids_of_a_byte_level_tokenizer(name: str, data: st.DataObject) -> None:
    tokenizer = loaded(name)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    deltas = streamed(Detokenizer(tokenizer, []), ids, data.draw(st.lists(st.integers(0, 40), max_size=8)))
    assert "".join(deltas) == tokenizer.decode(ids)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["gemma3", "tiny_llama", "legacy"]), st.data())
def test_any_ids_of_a_byte_fallback_tokenizer(name: str, data: st.DataObject) -> None:
    """The library gives up a whole run of byte tokens when it is not valid; streaming keeps its valid characters."""
    tokenizer = loaded(name)
    text_ids = st.integers(0, tokenizer.vocab_size - 1).filter(lambda i: not _is_byte(tokenizer, i))
    runs = st.one_of(text_ids.map(lambda i: [i]), TEXT.map(lambda text: _bytes(tokenizer, text[:3])))
    ids = [token for run in data.draw(st.lists(runs, max_size=20)) for token in run]
    deltas = streamed(Detokenizer(tokenizer, []), ids, data.draw(st.lists(st.integers(0, 60), max_size=8)))
    assert "".join(deltas) == tokenizer.decode(ids)


@settings(max_examples=300, deadline=None)
@given(NAMES, TEXT, TEXT)
def test_the_reply_goes_on_where_the_prompt_ends(name: str, prompt: str, reply: str) -> None:
    tokenizer = loaded(name)
    ids = tokenizer.encode(prompt + reply)
    for cut in range(len(ids) + 1):
        whole_characters = Detokenizer(tokenizer, []).push(ids[:cut]).text
        detokenizer = Detokenizer(tokenizer, ids[:cut])
        detokenizer.push(ids[cut:])
        detokenizer.finish()
        assert whole_characters + detokenizer.text == tokenizer.decode(ids)


def test_a_leading_space_stays_after_a_prompt_and_goes_at_the_start() -> None:
    tokenizer = loaded("tiny_llama")
    ids = tokenizer.encode("the fox", add_special=False)
    assert tokenizer.piece(ids[0]) == "▁the"
    at_start, after = Detokenizer(tokenizer, tokenizer.encode("")), Detokenizer(tokenizer, tokenizer.encode("over"))
    assert at_start.push(ids).text == "the fox"
    assert after.push(ids).text == " the fox"


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_a_character_comes_whole_with_its_last_token(name: str) -> None:
    tokenizer = loaded(name)
    ids = tokenizer.encode("ᚠ", add_special=False)
    assert len(ids) > 1
    detokenizer = Detokenizer(tokenizer, tokenizer.encode("rune:"))
    assert [detokenizer.push([token]).text for token in ids[:-1]] == [""] * (len(ids) - 1)
    assert detokenizer.push(ids[-1:]).text == "ᚠ"


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_half_a_character_at_the_end_is_marked(name: str) -> None:
    tokenizer = loaded(name)
    ids = tokenizer.encode("ᚠ", add_special=False)[:-1]
    detokenizer = Detokenizer(tokenizer, [])
    assert detokenizer.push(ids).text == ""
    assert set(detokenizer.finish().text) == {REPLACEMENT}
    assert detokenizer.text == tokenizer.decode(ids)


def test_bytes_that_fit_no_character_are_marked_and_the_rest_is_kept() -> None:
    tokenizer = loaded("gemma3")
    byte = {value: tokenizer.token_id(f"<0x{value:02X}>") for value in (0x41, 0xE4, 0xBD, 0xA0)}
    ids = [byte[0xE4], byte[0x41], byte[0xE4], byte[0xBD], byte[0xA0], byte[0xA0]]
    detokenizer = Detokenizer(tokenizer, [])
    assert [detokenizer.push([token]).text for token in ids] == ["", "\ufffdA", "", "", "你", "\ufffd"]


def test_special_tokens_are_skipped_or_kept() -> None:
    tokenizer = loaded("smollm2")
    ids = tokenizer.encode("a<|im_end|>b")
    assert Detokenizer(tokenizer, []).push(ids).text == "ab"
    assert Detokenizer(tokenizer, [], skip_special=False).push(ids).text == "a<|im_end|>b"


def test_ids_without_a_token_add_no_text() -> None:
    tokenizer = loaded("smollm2")
    detokenizer = Detokenizer(tokenizer, [tokenizer.vocab_size + 7])
    assert detokenizer.push([tokenizer.vocab_size, *tokenizer.encode("x"), tokenizer.vocab_size + 1]).text == "x"


def test_other_decoders_go_through_a_window() -> None:
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(
        ["unbelievable undoing of believers", "doing, being."],
        trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]"], show_progress=False),
    )
    tokenizer = Tokenizer(backend)
    assert tokenizer.decoding.kind == "other"
    text = "undoing, believers being. " * 20
    ids = tokenizer.encode(text)
    detokenizer = Detokenizer(tokenizer, [])
    deltas = [detokenizer.push([token]).text for token in ids]
    assert "".join(deltas) == tokenizer.decode(ids)
    assert sum(map(bool, deltas)) == len(ids)


def first_stop(text: str, stops: list[str]) -> tuple[int, str] | None:
    """What a search through the whole text finds: the match that ends first, the longest of those."""
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        return None
    end, _, stop = min(ends)
    return end, stop


STOPS = st.lists(st.text("ab \n", min_size=1, max_size=4), min_size=1, max_size=4)


@settings(max_examples=600, deadline=None)
@given(st.text("ab \n", max_size=40), STOPS, st.lists(st.integers(0, 40), max_size=20), st.booleans())
def test_stop_strings_cut_where_a_whole_text_search_does(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    tokenizer = loaded("smollm2")
    ids = tokenizer.encode(text)
    found = first_stop(text, stops)
    detokenizer = Detokenizer(tokenizer, [], stop=stops, include_stop=include)
    deltas = streamed(detokenizer, ids, cuts)
    if found is None:
        assert (detokenizer.stop, "".join(deltas)) == (None, text)
    else:
        end, stop = found
        assert (detokenizer.stop, "".join(deltas)) == (stop, text[: end if include else end - len(stop)])
    assert detokenizer.text == "".join(deltas)


@settings(max_examples=200, deadline=None)
@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4))
def test_what_is_given_out_can_never_be_part_of_a_stop_string(text: str, stops: list[str]) -> None:
    automaton = StopStrings(stops)
    state, read, found = automaton.scan(0, text)
    if found is None:
        suffixes = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
        assert automaton.held(state) == max(suffixes, default=0)
    else:
        assert first_stop(text, stops) == (read, found)


def test_a_stop_string_over_token_borders_never_leaks() -> None:
    tokenizer = loaded("smollm2")
    ids = tokenizer.encode("One two.\n\nUser: three")
    detokenizer = Detokenizer(tokenizer, [], stop=["\n\nUser:"])
    deltas = [detokenizer.push([token]) for token in ids]
    stopped = next(i for i, delta in enumerate(deltas) if delta.stop)
    assert detokenizer.text == "One two."
    assert tokenizer.decode(ids[: stopped + 1]) == "One two.\n\nUser:"
    assert all(delta.text == "" and delta.tokens_used == 0 for delta in deltas[stopped + 1 :])


def test_tokens_of_one_push_are_counted_up_to_the_stop_string() -> None:
    tokenizer = loaded("smollm2")
    ids = tokenizer.encode("1234567")
    assert len(ids) == 7
    detokenizer = Detokenizer(tokenizer, [], stop=["45"])
    assert detokenizer.push(ids[:2]).tokens_used == 2
    delta = detokenizer.push(ids[2:])
    assert (delta.text, delta.stop, delta.tokens_used) == ("3", "45", 3)
    assert detokenizer.text == "123"
    assert detokenizer.finish().text == ""


def test_held_text_comes_out_at_the_end() -> None:
    tokenizer = loaded("smollm2")
    detokenizer = Detokenizer(tokenizer, [], stop=["ab!"])
    assert detokenizer.push(tokenizer.encode("x ab")).text == "x "
    delta = detokenizer.finish()
    assert (delta.text, delta.stop) == ("ab", None)


def test_stop_strings_count_after_min_tokens_only() -> None:
    tokenizer = loaded("smollm2")
    ids = tokenizer.encode("1112111")
    detokenizer = Detokenizer(tokenizer, [], stop=["11"], min_tokens=4)
    delta = detokenizer.push(ids)
    assert (delta.text, delta.stop, delta.tokens_used) == ("1112", "11", 6)


def _is_byte(tokenizer: Tokenizer, token: int) -> bool:
    return (tokenizer.piece(token) or "").startswith("<0x")


def _bytes(tokenizer: Tokenizer, text: str) -> list[int]:
    ids = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in text.encode()]
    return [token for token in ids if token is not None]
