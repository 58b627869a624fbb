"""How many workers a server has, for what, and what each is told: the command line's flags are these fields."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, get_type_hints

import msgspec

from slipstream.cluster.config import Role, WorkerSpec
from slipstream.engine.config import EngineConfig
from slipstream.errors import ConfigError
from slipstream.hardware.host import read_host
from slipstream.hardware.processors import divided


@dataclass(frozen=True, kw_only=True)
class FleetConfig:
    """The language model's workers.

    Parameters
    ----------
    workers
        Worker processes that run the model, each whole. None: one, or none beside those of the next two flags.
    prefill
        Worker processes that compute prompts alone; decode workers go on with what they computed.
    decode
        Worker processes that go on where prefill workers end, and that compute short prompts themselves.
    prefill_set
        A setting of the prefill workers alone, as name=value, such as tp=2 or max-batched-tokens=2048. May be repeated.
    decode_set
        The same of the decode workers.
    disagg_threshold
        Prompt tokens that a decode worker must lack for a prefill worker to compute them; shorter ones stay.
    """

    workers: int | None = None
    prefill: int = 0
    decode: int = 0
    prefill_set: tuple[str, ...] = ()
    decode_set: tuple[str, ...] = ()
    disagg_threshold: int = 256

    def __post_init__(self) -> None:
        """Refuse numbers that cannot work. Raises ConfigError."""
        for name in ("workers", "prefill", "decode", "disagg_threshold"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name} must not be negative, got {value}")
        both = self.workers or 0
        if self.prefill and not self.decode and not both:
            raise ConfigError("prefill workers need somebody to go on: add --decode 1")
        if self.decode and not self.prefill:
            raise ConfigError("decode workers alone have nobody to compute prompts for them: add --prefill 1")
        if self.workers == 0 and not self.prefill:
            raise ConfigError("a server needs at least one worker, got --workers 0")
        if (self.prefill_set and not self.prefill) or (self.decode_set and not self.decode):
            raise ConfigError("--prefill-set and --decode-set are for workers of --prefill and --decode")

    @property
    def count(self) -> int:
        """Workers in all."""
        return self.prefill + self.decode + (self.workers if self.workers is not None else int(not self.prefill))


def specs(config: FleetConfig, engine: EngineConfig, *, here: bool = True) -> list[WorkerSpec]:
    """What each worker is told: prefill workers first, then decode workers, then those that are both.

    `here`: they run on this machine.

    Several workers divide this machine's processors. Where those cannot be divided, they share them all and each starts
    its part of the threads. Raises ConfigError for a setting that there is not.
    """
    prefill, decode = changed(engine, config.prefill_set), changed(engine, config.decode_set)
    wanted: list[tuple[Role, EngineConfig]] = [("prefill", prefill)] * config.prefill
    wanted += [("decode", decode)] * config.decode
    wanted += [("both", engine)] * (config.count - len(wanted))
    if len(wanted) == 1:
        return [WorkerSpec(engine=engine)]
    if not here:
        return [WorkerSpec(engine=own, role=role) for role, own in wanted]
    parts = divided([own.cpu_threads for _, own in wanted])
    if parts is None:
        threads = max(1, read_host().cpus // len(wanted))
        return [
            WorkerSpec(engine=replace(own, cpu_threads=own.cpu_threads or threads), role=role) for role, own in wanted
        ]
    return [WorkerSpec(engine=own, role=role, processors=part) for (role, own), part in zip(wanted, parts, strict=True)]


def changed(engine: EngineConfig, settings: tuple[str, ...]) -> EngineConfig:
    """An engine's settings with some others: name=value, names as flags or as fields.

    Raises ConfigError for what is no setting of an engine, or cannot be its value.
    """
    types = get_type_hints(EngineConfig)
    values: dict[str, Any] = {}
    for setting in settings:
        flag, equals, text = setting.partition("=")
        name = flag.strip().removeprefix("--").replace("-", "_")
        if not equals or name not in types:
            known = ", ".join(field.name.replace("_", "-") for field in fields(EngineConfig))
            raise ConfigError(f"{setting!r} is not a setting of an engine: write name=value; the names are {known}")
        try:
            values[name] = msgspec.convert(text.strip(), types[name], strict=False)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{setting!r}: {error}") from None
    return replace(engine, **values)
