"""How each family splits a text into words."""

from __future__ import annotations

import pytest

from slipstream.errors import CheckpointError
from slipstream.text.from_gguf import split_rule
from slipstream.text.pretokenizers import RULES

TEXT = "It's 2024,  I'LL pay 12345€!\n\n  x=y²"


def words(name: str, text: str) -> list[str]:
    """The pieces of `text`, found by their place in it (the alphabet for bytes hides their letters)."""
    pieces = RULES[name].pre_tokenizer().pre_tokenize_str(text)
    return [text[start:end] for _, (start, end) in pieces]


@pytest.mark.parametrize("name", RULES)
def test_every_rule_keeps_every_character(name: str) -> None:
    text = TEXT + " 你好，世界 カナ Ünïcödé हिन्दी 🙂\r\n\t (a|b) 'Tis"
    assert "".join(words(name, text)) == text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt-2", "It|'s| 2024|,| | I|'|LL| pay| 12345|€!|\n\n | x|=|y|²"),
        ("smollm", "It|'s| |2|0|2|4|,| | I|'|LL| pay| |1|2|3|4|5|€!|\n\n | x|=|y|²"),
        ("llama-bpe", "It|'s| |202|4|,| | I|'LL| pay| |123|45|€!\n\n| | x|=y|²"),
        ("qwen2", "It|'s| |2|0|2|4|,| | I|'LL| pay| |1|2|3|4|5|€!\n\n| | x|=y|²"),
        ("gpt-4o", "It's| |202|4|,| | I'LL| pay| |123|45|€!\n\n| | x|=y|²"),
        ("tekken", "It|'s| |2|0|2|4|,| | I|'LL| pay| |1|2|3|4|5|€!\n\n| | x|=y|²"),
        ("deepseek-v3", "It|'s| |202|4|,| | I|'LL| pay| |123|45|€!\n\n| | x|=y|²"),
        ("deepseek-llm", "It|'|s| |2024|,| | I|'|LL| pay| |12345|€|!|\n|\n| | x|=|y|²"),
        ("falcon", "It|'|s| |202|4|,| | I|'|LL| pay| |123|45|€|!|\n\n | x|=|y|²"),
        ("bloom", "It's| 2024|, | I'LL| pay| 12345€|!\n\n | x=y²"),
    ],
)
def test_the_words_of_a_family(name: str, expected: str) -> None:
    assert "|".join(words(name, TEXT)) == expected


def test_an_unknown_rule_names_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(CheckpointError, match=r"'smolm' \(nearest: smollm\).*Known: .*llama-bpe.*qwen2"):
        split_rule("smolm")


def test_files_that_name_no_rule_get_gpt_2_s() -> None:
    assert split_rule(None) is split_rule("default") is split_rule("gpt-2")
