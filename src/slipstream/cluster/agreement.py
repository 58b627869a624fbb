"""Whether a worker that has started may join the others: one server's workers must mean the same by a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slipstream.api.engine import EngineInfo
from slipstream.cluster.messages import AnyReady, Ready, TransferInfo
from slipstream.cluster.slot import Slot
from slipstream.errors import ConfigError

_TOLD = {
    "model": "the fingerprint of the weights and their types",
    "layout": "what a page of the KV cache holds",
    "version": "Slipstream's version",
    "kind": "how KV pages move",
}


def check_ready(slot: Slot[Any, Any, Any, Any], slots: Sequence[Slot[Any, Any, Any, Any]], ready: AnyReady) -> None:
    """Raises ConfigError if what `slot`'s process says of itself does not go with the other workers.

    While weights are changed worker by worker, old and new ones are side by side: those need only the same vocabulary,
    and move no KV pages between them.
    """
    if not isinstance(ready, Ready):
        return
    name = f"worker {slot.index} ({slot.role})"
    if slot.role != "both":
        if ready.info.pooling is not None:
            raise ConfigError(f"{name}: a model that makes vectors has no decoding to keep apart: use --workers")
        if ready.transfer is None:
            raise ConfigError(f"{name} moves no KV pages, so prefill and decode cannot be apart: use --workers")
    for other in slots:
        if not isinstance(other.info, EngineInfo):
            continue
        for field in ("vocab_size", "pooling"):
            ours, theirs = getattr(ready.info, field), getattr(other.info, field)
            if ours != theirs:
                raise ConfigError(f"{name} has {field} {ours}, and worker {other.index} {theirs}: not the same model")
        if other is not slot and other.alive and other.generation == slot.generation:
            if ready.info.model != other.info.model:
                raise ConfigError(
                    f"{name} runs {ready.info.model}, and worker {other.index} {other.info.model}: "
                    "the model's files have changed; change all workers with POST /admin/reload"
                )
            if slot.role != other.role and ready.transfer is not None and other.transfer is not None:
                _check_pages(name, ready.transfer, other.index, other.transfer)


def _check_pages(name: str, ours: TransferInfo, index: int, theirs: TransferInfo) -> None:
    differing = [
        f"{told} ({getattr(ours, field)} and {getattr(theirs, field)})"
        for field, told in _TOLD.items()
        if getattr(ours, field) != getattr(theirs, field)
    ]
    if differing:
        raise ConfigError(
            f"{name} cannot read the KV pages of worker {index}: they differ in {', '.join(differing)}; give both the "
            "same model, dtype, quantization, kv-dtype and page-size"
        )
