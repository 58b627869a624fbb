"""Every shape that a step is compiled for. Few, because each costs compile time before the engine is ready."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from slipstream.errors import ConfigError

_DECODE_STEP = 4
_FIRST_DECODE = 8
_SMALL_TOKENS = 32
_FIRST_MIXED = 128
_TOKENS_PER_ROW = 4


@dataclass(frozen=True, order=True)
class Shape:
    """Packed tokens t and rows s of a compiled step. t == s where each row has exactly one token, else t > s."""

    tokens: int
    rows: int

    @property
    def decode_only(self) -> bool:
        """Whether each row has exactly one token."""
        return self.tokens == self.rows


@dataclass(frozen=True)
class ShapePolicy:
    """The shapes of an engine, and which one a step takes.

    Steps whose rows all have one token: 1, 8, 32, 128, ... up to `max_seqs` rows. Others: a small one for short
    prompts beside few sequences, then 128, 256, ... up to `max_batched_tokens` tokens. All but the largest have room
    for one row to four tokens: a step of many decodes and few prompt tokens takes the next size.
    The default engine (32 sequences, 512 tokens) has seven. The length of the context is no part of a shape: page
    tables are `max_pages_per_seq` wide in all of them, and the kernels read only the pages that a row has.
    """

    max_seqs: int
    max_batched_tokens: int
    max_pages_per_seq: int

    def __post_init__(self) -> None:
        """Raises ConfigError for limits that allow no step."""
        if min(self.max_seqs, self.max_pages_per_seq) < 1 or self.max_batched_tokens < self.max_seqs:
            raise ConfigError(
                f"no step fits max_seqs={self.max_seqs}, max_batched_tokens={self.max_batched_tokens}, "
                f"max_pages_per_seq={self.max_pages_per_seq}: "
                "raise them to at least 1, and max_batched_tokens to at least max_seqs"
            )

    @cached_property
    def decode(self) -> tuple[Shape, ...]:
        """Shapes for steps of one token a row, smallest first."""
        rows = [1, *_buckets(_FIRST_DECODE, self.max_seqs, factor=_DECODE_STEP)] if self.max_seqs > 1 else [1]
        return tuple(Shape(n, n) for n in rows)

    @cached_property
    def mixed(self) -> tuple[Shape, ...]:
        """Shapes for all other steps, smallest first."""
        most = max(self.max_batched_tokens, self.max_seqs + 1)
        *sizes, _ = _buckets(_FIRST_MIXED, most, factor=2)
        if most > _SMALL_TOKENS:
            sizes.insert(0, _SMALL_TOKENS)
        return (*(Shape(n, min(n // _TOKENS_PER_ROW, self.max_seqs)) for n in sizes), Shape(most, self.max_seqs))

    def all(self) -> tuple[Shape, ...]:
        """Every shape, largest first: the one that needs the most memory fails first."""
        return tuple(sorted((*self.decode, *self.mixed), reverse=True))

    def shape_for(self, num_tokens: int, num_rows: int, decode_only: bool) -> Shape:
        """The smallest shape that holds a step. `decode_only`: each row has one token.

        Raises ValueError for a step beyond the limits: the scheduler plans none.
        """
        for shape in self.decode if decode_only else self.mixed:
            if num_tokens <= shape.tokens and num_rows <= shape.rows:
                return shape
        raise ValueError(f"no shape holds {num_tokens} tokens in {num_rows} rows: the largest is {self.mixed[-1]}")


def _buckets(first: int, last: int, *, factor: int) -> list[int]:
    """first, first * factor, ... below last, then last."""
    sizes = []
    while first < last:
        sizes.append(first)
        first *= factor
    return [*sizes, last]
