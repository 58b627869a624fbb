"""Stop strings, found as text arrives in pieces."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class StopStrings:
    """An Aho-Corasick automaton over the stop strings: one step a character, however many strings there are.

    The match that ends first wins, and of those that end together the longest: so a match does not depend on how the
    text was cut into pieces. `state` 0 is the start.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops`: none of them empty."""
        self._next: list[dict[str, int]] = [{}]
        self._fail: list[int] = [0]
        self._depth: list[int] = [0]
        self._ends: list[str | None] = [None]
        for stop in stops:
            self._add(stop)
        self._link()

    def _add(self, stop: str) -> None:
        state = 0
        for char in stop:
            if char not in self._next[state]:
                self._next[state][char] = len(self._next)
                self._next.append({})
                self._fail.append(0)
                self._depth.append(self._depth[state] + 1)
                self._ends.append(None)
            state = self._next[state][char]
        self._ends[state] = stop

    def _link(self) -> None:
        """Breadth first: each state falls back to the longest proper suffix of its text that is a state too."""
        waiting = deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            for char, child in self._next[state].items():
                self._fail[child] = self._step(self._fail[state], char)
                waiting.append(child)
            if self._ends[state] is None:
                self._ends[state] = self._ends[self._fail[state]]

    def _step(self, state: int, char: str) -> int:
        while state and char not in self._next[state]:
            state = self._fail[state]
        return self._next[state].get(char, 0)

    def scan(self, state: int, text: str) -> tuple[int, int, str | None]:
        """Go on over `text`. Returns the new state, the characters read, and the stop string that ends there if any."""
        for i, char in enumerate(text):
            state = self._step(state, char)
            found = self._ends[state]
            if found is not None:
                return state, i + 1, found
        return state, len(text), None

    def held(self, state: int) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        return self._depth[state]
