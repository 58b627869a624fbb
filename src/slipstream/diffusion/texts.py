"""A bounded memory of encoded texts: encoding takes as long as several steps, and prompts come again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from slipstream.diffusion.pipeline import Text


class TextCache:
    """The texts that were encoded last, as long as they take no more than `most_bytes`. Not thread safe."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._kept: OrderedDict[Hashable, Text] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, encode: Callable[[], Text]) -> Text:
        """What `encode` gives, from memory if it is there. A result over the bound is not kept.

        `key`: the text, and whatever else its encoding depends on.
        """
        found = self._kept.get(key)
        if found is not None:
            self.hits += 1
            self._kept.move_to_end(key)
            return found
        self.misses += 1
        made = encode()
        self._keep(key, made)
        return made

    def _keep(self, key: Hashable, made: Text) -> None:
        size = _size(made)
        if size > self.most_bytes:
            return
        self._kept[key] = made
        self.bytes += size
        while self.bytes > self.most_bytes:
            self.bytes -= _size(self._kept.popitem(last=False)[1])


def _size(text: Text) -> int:
    return int(text.states.nbytes + text.pooled.nbytes)
