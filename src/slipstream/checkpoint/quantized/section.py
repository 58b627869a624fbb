"""quantization_config, read by consuming it: a key that no code asked for is an error, never dropped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from slipstream.errors import CheckpointError, UnknownConfigKeys, UnsupportedModel

T = TypeVar("T", int, bool, str)


class Section:
    """The keys of one JSON object as they are consumed. `path`: its name in messages. null counts as absent."""

    def __init__(self, content: Any, path: str) -> None:
        if not isinstance(content, Mapping):
            raise CheckpointError(f"config.json: {path} must be an object, got {content!r}")
        self._left = dict(content)
        self.path = path

    def take(self, name: str, kind: type[T], default: T | None = None) -> T:
        """The value of a key. Raises CheckpointError where it is mistyped, or absent without a default."""
        value = self._left.pop(name, None)
        if value is None:
            value = default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise CheckpointError(f"config.json: {self.path}.{name} must be {kind.__name__}, got {value!r}")
        return value

    def choice(self, name: str, supported: Sequence[Any], default: Any = None) -> Any:
        """The value of a key that must be one of those `supported`. Raises UnsupportedModel, which lists them."""
        value = self._left.pop(name, None)
        value = default if value is None else value
        if not any(value == one and type(value) is type(one) for one in supported):
            listed = ", ".join("none" if one is None else str(one) for one in supported)
            raise UnsupportedModel(f"config.json sets {self.path}.{name} to {value!r}; Slipstream reads: {listed}")
        return value

    def strings(self, *names: str) -> tuple[str, ...]:
        """The lists of strings under these keys, joined; absent ones are empty."""
        found: list[str] = []
        for name in names:
            value = self._left.pop(name, None)
            if not isinstance(value, list | None) or not all(isinstance(one, str) for one in value or ()):
                raise CheckpointError(f"config.json: {self.path}.{name} must be a list of strings, got {value!r}")
            found += value or ()
        return tuple(found)

    def sizes(self, name: str) -> tuple[int, ...] | None:
        """A list of sizes, None where it is absent."""
        value = self._left.pop(name, None)
        if value is not None and not (isinstance(value, list) and all(type(n) is int and n > 0 for n in value)):
            raise CheckpointError(f"config.json: {self.path}.{name} must be a list of sizes, got {value!r}")
        return None if value is None else tuple(value)

    def section(self, name: str) -> Section | None:
        """The object under a key, None where it is absent."""
        value = self._left.pop(name, None)
        return None if value is None else Section(value, f"{self.path}.{name}")

    def sections(self, name: str) -> list[Section]:
        """The objects that the object under a key holds."""
        value = self._left.pop(name, None)
        if not isinstance(value, Mapping) or not value:
            raise CheckpointError(f"config.json: {self.path}.{name} must be an object with groups, got {value!r}")
        return [Section(content, f"{self.path}.{name}.{key}") for key, content in value.items()]

    def finish(self, inert: Iterable[str] = ()) -> None:
        """End of reading. Raises UnknownConfigKeys naming what is left, but for what is null, empty or `inert`."""
        for name in inert:
            self._left.pop(name, None)
        if left := sorted(f"{self.path}.{name}" for name, value in self._left.items() if value not in (None, {}, [])):
            raise UnknownConfigKeys(", ".join(left))
