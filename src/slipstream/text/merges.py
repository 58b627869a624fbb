"""BPE merges for a SentencePiece vocabulary that comes with scores but no merge list (as a GGUF stores it)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

Merge = tuple[str, str]


def merges_from_scores(pieces: Sequence[tuple[str, float]]) -> list[Merge]:
    """The merge list, best first, that makes rank-ordered BPE act as SentencePiece's score-ordered BPE does.

    SentencePiece joins the adjacent pair whose union has the best score. So every way to cut a piece into two known
    ones is a merge, ranked by the piece's score; between equal scores the longer left part goes first, which makes
    runs of one character (spaces, newlines) grow greedily from the left, and is transformers' order too.

    `pieces`: text and score of each piece that merges may form or start from.
    """
    known = {piece for piece, _ in pieces}
    ranked = sorted(pieces, key=itemgetter(1), reverse=True)
    merges: list[Merge] = []
    if len({score for _, score in pieces}) == len(pieces):
        for piece, _ in ranked:
            merges += _cuts(piece, known)
        return merges
    for _, group in groupby(ranked, key=itemgetter(1)):
        tied = [pair for piece, _ in group for pair in _cuts(piece, known)]
        merges += sorted(tied, key=lambda pair: (len(pair[0]), len(pair[1])), reverse=True)
    return merges


def _cuts(piece: str, known: set[str]) -> list[Merge]:
    """The ways to cut `piece` into two known ones, the longest left part first."""
    return [
        (left, right)
        for cut in range(len(piece) - 1, 0, -1)
        if (right := piece[cut:]) in known and (left := piece[:cut]) in known
    ]
