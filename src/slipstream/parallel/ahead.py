"""Compiling ahead for devices that may not be there: what a compiled function needs of each of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import prod
from typing import Any

import jax

from slipstream.errors import OutOfMemory
from slipstream.parallel.hlo import Collectives, collectives


@dataclass(frozen=True)
class Needs:
    """What a compiled function takes. Bytes are of one device. `donated`: of arguments that results take the place of.

    `own`: of results that do not. `seconds`: of lowering and compiling.
    """

    arguments: int
    donated: int
    own: int
    temporaries: int
    code: int
    collectives: Collectives
    seconds: float

    @property
    def total(self) -> int:
        """All that is there while it runs."""
        return self.arguments + self.own + self.temporaries + self.code


def compile_ahead(function: Any, *arguments: Any) -> tuple[jax.stages.Compiled, Needs]:
    """Compile a jitted function for the devices that its arguments' shardings name.

    Raises OutOfMemory where the compiler refuses what a device cannot hold. Those of TPUs do; others give any sum.
    """
    started = time.monotonic()
    try:
        compiled = function.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(f"XLA says: {str(error).splitlines()[0][:300]}") from error
    seconds, memory = time.monotonic() - started, compiled.memory_analysis()
    needs = Needs(
        arguments=memory.argument_size_in_bytes,
        donated=memory.alias_size_in_bytes,
        own=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        collectives=collectives(compiled.as_text()),
        seconds=seconds,
    )
    return compiled, needs


def bytes_on_device(leaf: Any) -> int:
    """Bytes of an array, or of one to be, on each device that it is on."""
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    size: int = prod(shape) * leaf.dtype.itemsize
    return size
