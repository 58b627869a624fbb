"""Merges from scores, and their cache."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest

from slipstream.text import merge_cache
from slipstream.text.merge_cache import cached_merges
from slipstream.text.merges import merges_from_scores

PIECES = [("a", -3.0), ("b", -4.0), ("c", -5.0), ("ab", -1.0), ("bc", -2.0), ("abc", -0.5), ("xyz", 0.0)]


def test_the_best_score_merges_first_and_the_longer_left_part_before_the_shorter() -> None:
    assert merges_from_scores(PIECES) == [("ab", "c"), ("a", "bc"), ("a", "b"), ("b", "c")]


def test_equal_scores_are_ordered_by_the_left_part_so_that_runs_grow_greedily() -> None:
    runs = [("_" * n, 0.0) for n in range(1, 5)]
    merges = merges_from_scores(runs)
    assert [(len(left), len(right)) for left, right in merges] == [(3, 1), (2, 2), (2, 1), (1, 3), (1, 2), (1, 1)]


def sentencepiece(text: str, scores: dict[str, float]) -> list[str]:
    """What SentencePiece does, said directly: join the adjacent pair of the best score, the leftmost first."""
    parts = list(text)
    while True:
        pairs = [(scores[a + b], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
        if not pairs:
            return parts
        at = -max(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def ranked(text: str, merges: list[tuple[str, str]]) -> list[str]:
    """Rank-ordered BPE, said directly."""
    rank = {pair: i for i, pair in enumerate(merges)}
    parts = list(text)
    while True:
        pairs = [(rank[a, b], i) for i, (a, b) in enumerate(pairwise(parts)) if (a, b) in rank]
        if not pairs:
            return parts
        at = min(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def test_ranked_merges_act_as_scores_do() -> None:
    draw = random.Random(3)
    for _ in range(300):
        # Distinct letters within a piece: a piece that overlaps itself is where the two may part.
        words = {"".join(draw.sample("abcdef", draw.randint(2, 4))) for _ in range(12)}
        pieces = [*"abcdef", *sorted(words)]
        scores = {piece: float(-i) for i, piece in enumerate(draw.sample(pieces, len(pieces)))}
        merges = merges_from_scores(list(scores.items()))
        text = "".join(draw.choice("abcdef") for _ in range(12))
        assert ranked(text, merges) == sentencepiece(text, scores)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge_cache, "SMALLEST_CACHED", 1)


@pytest.mark.usefixtures("small")
def test_the_cache_gives_what_was_found_without_finding_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = merges_from_scores(PIECES)
    assert cached_merges(PIECES, tmp_path / "new") == expected
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".merges"]
    monkeypatch.setattr(merge_cache, "merges_from_scores", lambda pieces: pytest.fail("found again"))
    assert cached_merges(PIECES, tmp_path / "new") == expected


@pytest.mark.usefixtures("small")
def test_another_vocabulary_has_another_file(tmp_path: Path) -> None:
    cached_merges(PIECES, tmp_path)
    changed = [(piece, score if piece != "ab" else -9.0) for piece, score in PIECES]
    assert cached_merges(changed, tmp_path) == merges_from_scores(changed) != merges_from_scores(PIECES)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("damage", [b"", b"x" * 64, None, 70])
def test_a_damaged_file_costs_time_only(damage: bytes | int | None, tmp_path: Path) -> None:
    expected = cached_merges(PIECES, tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    broken = {None: whole[:-1], 70: whole[:70] + bytes([whole[70] ^ 1]) + whole[71:]}
    path.write_bytes(damage if isinstance(damage, bytes) else broken[damage])
    assert cached_merges(PIECES, tmp_path) == expected
    assert path.read_bytes() == whole


@pytest.mark.usefixtures("small")
def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert cached_merges(PIECES, tmp_path / "file" / "merges") == merges_from_scores(PIECES)


def test_small_vocabularies_are_not_cached(tmp_path: Path) -> None:
    cached_merges(PIECES, tmp_path)
    assert not list(tmp_path.iterdir())
