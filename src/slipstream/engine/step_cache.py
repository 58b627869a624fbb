"""Compiled steps on disk, so that a second start neither traces nor compiles.

XLA's own cache is asked with a traced and lowered step; making that takes longer than reading the result. Here a step
is found by the facts that it follows from: the code of this package, the machine, the versions, the model's config, and
the arguments' shapes.
"""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import serialize_executable

from slipstream.hardware.store import Entry, Store, name_of
from slipstream.kernels.compiles import xlas_cache_is_on

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompiledStep:
    """A function on the device, and the bytes of temporaries that a call takes."""

    call: Callable[..., Any]
    temporaries: int


class StepCache:
    """Compiled functions by what they follow from. `store`: None compiles always. `facts`: hold for all of them.

    `devices`: what the functions run on.
    """

    def __init__(self, store: Store | None, facts: Mapping[str, Any], devices: Sequence[jax.Device]) -> None:
        self._store = store
        self._facts = facts
        self._devices = list(devices)

    def get(
        self, kind: str, function: Callable[[], Callable[..., Any]], arguments: tuple[Any, ...], **facts: Any
    ) -> CompiledStep:
        """The function compiled for `arguments` (arrays or their shapes), from disk if it is there.

        `function()` makes the jitted function; called only when it must be compiled. `facts`: what it follows from,
        besides the arguments' shapes and the facts of all: JSON values.
        """
        if self._store is None:
            return _described(_compile(function, arguments))
        name = self._name(kind, arguments, facts)
        entry = self._store.read(name)
        step = None if entry is None else self._load(entry, name)
        if step is None:
            compiled = _compile(function, arguments)
            step = _described(compiled)
            # On a CPU, what came out of XLA's cache runs, but what it is serialized to a second time does not.
            if not xlas_cache_is_on():
                self._keep(self._store, name, compiled, step)
        return step

    def read(
        self,
        kind: str,
        function: Callable[[], Callable[..., Any]],
        arguments: tuple[Any, ...],
        describe: Callable[[jax.stages.Compiled], Any],
        **facts: Any,
    ) -> Any:
        """What `describe` says of the function compiled, a JSON value, from disk if it is there. See `get`."""
        if self._store is None:
            return describe(_compile(function, arguments))
        name = self._name(kind, arguments, facts)
        entry = self._store.read(name)
        if entry is not None:
            return entry.facts["said"]
        said = describe(_compile(function, arguments))
        self._store.write(name, {"said": said}, {})
        return said

    def _name(self, kind: str, arguments: tuple[Any, ...], facts: Mapping[str, Any]) -> str:
        return name_of(kind, {"all": self._facts, "own": facts, "arguments": _signature(arguments)})

    def _load(self, entry: Entry, name: str) -> CompiledStep | None:
        try:
            tree_in, tree_out = _Unpickler(io.BytesIO(entry.parts["trees"]), self._devices).load()
            loaded = serialize_executable.deserialize_and_load(
                bytes(entry.parts["executable"]), tree_in, tree_out, self._devices[0].client, self._devices
            )
            return CompiledStep(loaded, int(entry.facts["temporaries"]))
        except Exception as error:  # whatever XLA or pickle make of it: compiling is always right
            logger.warning("a kept step, %s, cannot be loaded (%s) and is compiled again", name, error)
            return None

    @staticmethod
    def _keep(store: Store, name: str, compiled: jax.stages.Compiled, step: CompiledStep) -> None:
        try:
            executable, tree_in, tree_out = serialize_executable.serialize(compiled)
            trees = io.BytesIO()
            _Pickler(trees).dump((tree_in, tree_out))
        except Exception as error:  # a backend or a step that cannot be kept is compiled each time
            logger.info("%s cannot be kept: %s", name, error)
            return
        store.write(name, {"temporaries": step.temporaries}, {"executable": executable, "trees": trees.getvalue()})


class _Pickler(pickle.Pickler):
    """Trees whose leaves name a mesh have devices in them, which are kept by their numbers."""

    def persistent_id(self, obj: Any) -> int | None:
        """The number of a device; None for all else, which is kept itself."""
        return obj.id if isinstance(obj, jax.Device) else None


class _Unpickler(pickle.Unpickler):
    """Reads what `_Pickler` wrote. A device that is not among `devices` is a KeyError."""

    def __init__(self, file: io.BytesIO, devices: Sequence[jax.Device]) -> None:
        super().__init__(file)
        self._devices = {device.id: device for device in devices}

    def persistent_load(self, pid: int) -> jax.Device:
        """The device with a number."""
        return self._devices[pid]


def _compile(function: Callable[[], Callable[..., Any]], arguments: tuple[Any, ...]) -> jax.stages.Compiled:
    jitted: Any = function()
    return jitted.lower(*arguments).compile()


def _described(compiled: jax.stages.Compiled) -> CompiledStep:
    analysis: Any = compiled.memory_analysis()
    return CompiledStep(compiled, int(analysis.temp_size_in_bytes))


def _signature(arguments: tuple[Any, ...]) -> list[Any]:
    leaves, tree = jax.tree.flatten(arguments)
    return [str(tree), [[list(leaf.shape), str(leaf.dtype)] for leaf in leaves]]
