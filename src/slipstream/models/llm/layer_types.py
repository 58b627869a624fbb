"""Which layers see everything and which look through a window, as config.json says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from slipstream.errors import UnsupportedModel
from slipstream.models.keys import Keys
from slipstream.models.llm.rope import Rope
from slipstream.models.llm.stack import Kind

FULL: Final = "full_attention"
SLIDING: Final = "sliding_attention"


def read_kinds(keys: Keys, kinds: Mapping[str, Kind], otherwise: Sequence[str]) -> tuple[Kind, ...]:
    """The kind of each layer, by the types that `layer_types` lists; `otherwise` are the types where it is absent.

    `kinds` are those that the model has. Raises UnsupportedModel for another, or for a list of another length.
    """
    types = keys.strings("layer_types") or otherwise
    if len(types) != len(otherwise):
        raise UnsupportedModel(f"layer_types lists {len(types)} layers, num_hidden_layers says {len(otherwise)}")
    if unknown := sorted(set(types) - set(kinds)):
        raise UnsupportedModel(f"{keys.family} has layers of type {', '.join(kinds)}, not {', '.join(unknown)}")
    return tuple(kinds[name] for name in types)


def read_upper_windows(keys: Keys, layers: int, rope: Rope) -> tuple[Kind, ...]:
    """Qwen's way: where `use_sliding_window` is set, layers from `max_window_layers` on look through a window."""
    size, first = keys.nullable("sliding_window", int, 4096), keys.take("max_window_layers", int, 28)
    window = size if keys.take("use_sliding_window", bool, False) else None
    kinds = {FULL: Kind(rope)} | ({SLIDING: Kind(rope, window)} if window else {})
    return read_kinds(keys, kinds, [SLIDING if window and i >= first else FULL for i in range(layers)])
