"""`slipstream manifests`: Kubernetes YAML that serves a model with the given settings."""

from __future__ import annotations

import sys
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from slipstream.cluster.fleet import FleetConfig, changed
from slipstream.cluster.kubernetes import (
    HTTP_PORT,
    WORKER_PORT,
    Devices,
    Manifest,
    Names,
    Pod,
    Scaling,
    Secrets,
    deployment,
    pod_monitor,
    scaler,
    service,
    worker_service,
)
from slipstream.cluster.launch_config import LaunchConfig
from slipstream.engine.config import EngineConfig
from slipstream.errors import ConfigError, ModelNotFound
from slipstream.hardware.profile import target_of
from slipstream.server.config import ServerConfig

_SERVER_BYTES = 2 * 2**30
"""Of a pod that holds requests and no model: the HTTP process takes 100 MiB, and more with many streams."""
_ACCELERATOR_BYTES = 8 * 2**30
"""Beside an accelerator: the compiler and the weights on their way, which are never there as a whole."""
_CPU_KV_BYTES = 2**30
"""The most KV cache that an engine on a CPU takes unasked."""


@dataclass(frozen=True, kw_only=True)
class ManifestsConfig:
    """Settings of `slipstream manifests`.

    Parameters
    ----------
    image
        The container's image, which has `slipstream` on its path.
    name
        What the objects are called, and their pods begin with.
    namespace
        Where they are. None: where they are applied.
    target
        Devices of a pod: cpu, or as of slipstream compile, such as v6e-8 or h100-4.
    prefill_target
        The same of pods that prefill. None: as target.
    topology
        A TPU slice's sides, such as 2x4. None: the target's own.
    cpus
        Processors that a pod with a model asks for.
    memory_bytes
        Memory that a pod with a model asks for. None: from the size of the model, which must then be on this machine
        if the target is cpu.
    replicas
        Pods that each serve the whole model.
    max_replicas
        Most of them, when many requests wait. None: their number stays.
    autoscaler
        Who changes their number: keda asks Prometheus; hpa needs an adapter that serves vllm_num_requests_waiting.
    waiting
        Requests that wait at each replica, on average, over which one is added.
    prometheus
        Where KEDA asks Prometheus.
    scrape_seconds
        Seconds between two looks of Prometheus at a pod.
    api_key_secret
        A Secret with the key that clients need, under api-key. None: none is needed.
    hub_token_secret
        A Secret with the token for Hugging Face, under token. None: none is needed.
    cluster_secret
        A Secret with what a server and its workers in other pods share, under secret.
    cache_claim
        A volume claim for models and compiled steps. None: each pod fetches and compiles anew.
    output
        File to write. None: standard output.
    """

    image: str
    name: str = "slipstream"
    namespace: str | None = None
    target: str = "cpu"
    prefill_target: str | None = None
    topology: str | None = None
    cpus: str = "4"
    memory_bytes: int | None = None
    replicas: int = 1
    max_replicas: int | None = None
    autoscaler: Literal["keda", "hpa"] = "keda"
    waiting: int = 8
    prometheus: str = "http://prometheus-operated.monitoring:9090"
    scrape_seconds: int = 15
    api_key_secret: str | None = None
    hub_token_secret: str | None = None
    cluster_secret: str = "slipstream-cluster"
    cache_claim: str | None = None
    output: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises ConfigError."""
        for name in ("replicas", "scrape_seconds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")


def manifests(
    model: str,
    *,
    config: Annotated[ManifestsConfig, Parameter(name="*")],
    server: Annotated[ServerConfig, Parameter(name="*")] = ServerConfig(),
    engine: Annotated[EngineConfig, Parameter(name="*")] = EngineConfig(),
    fleet: Annotated[FleetConfig, Parameter(name="*")] = FleetConfig(),
) -> None:
    """Write Kubernetes YAML that serves a model: pods, their address, what watches and what scales them.

    Takes the flags of `slipstream serve` too, which the pods get. With --prefill and --decode, workers are pods of
    their own that join the server's. docs/kubernetes.md says what must be in the cluster.
    """
    text = dump(build(model, config, server, engine, fleet))
    if config.output is None:
        sys.stdout.write(text)
    else:
        config.output.write_text(text, encoding="utf-8")


def dump(objects: list[Manifest]) -> str:
    """YAML, a document an object."""
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        """Writes what occurs twice twice: anchors are not for people."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    text: str = yaml.dump_all(objects, Dumper=Dumper, sort_keys=False, width=120)
    return text


def build(
    model: str, config: ManifestsConfig, server: ServerConfig, engine: EngineConfig, fleet: FleetConfig
) -> list[Manifest]:
    """The objects. Raises ConfigError for settings that do not go together."""
    names = Names(config.name, config.namespace)
    pods = (
        _apart(model, config, server, engine, fleet) if fleet.prefill else _whole(model, config, server, engine, fleet)
    )
    made = [deployment(names, component, replicas, pod) for component, replicas, pod in pods]
    made += [service(names), pod_monitor(names, config.scrape_seconds)]
    if fleet.prefill:
        made.append(worker_service(names))
        if config.max_replicas is not None or config.replicas > 1:
            raise ConfigError("workers apart have a number of their own: leave --replicas and --max-replicas out")
    elif config.max_replicas is not None:
        scaling = Scaling(config.autoscaler, config.replicas, config.max_replicas, config.waiting, config.prometheus)
        made.append(scaler(names, scaling, made[0]))
    return made


def flags(settings: Any) -> list[str]:
    """A settings object as the command line that makes it: what differs from the defaults."""
    words: list[str] = []
    for field in fields(settings):
        value, name = getattr(settings, field.name), field.name.replace("_", "-")
        if field.default is not MISSING and value == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
            continue
        for one in value if isinstance(value, tuple) else [value]:
            words += [f"--{name}", str(one)]
    return words


_Pods = list[tuple[str, int, Pod]]
"""Their component, their number, and what each is."""


def _whole(
    model: str, config: ManifestsConfig, server: ServerConfig, engine: EngineConfig, fleet: FleetConfig
) -> _Pods:
    devices = _devices(config.target, config.topology)
    engine = _filling(engine, devices, config.target)
    args = ["serve", model, *flags(_open(server)), *flags(engine), *flags(fleet)]
    secrets = Secrets(config.api_key_secret, config.hub_token_secret)
    memory = config.memory_bytes or _memory(model, engine, devices) * max(1, fleet.count if devices is None else 1)
    pod = Pod(config.image, args, config.cpus, memory, devices, secrets, server.drain_timeout, config.cache_claim)
    return [("server", config.replicas, pod)]


def _apart(
    model: str, config: ManifestsConfig, server: ServerConfig, engine: EngineConfig, fleet: FleetConfig
) -> _Pods:
    if fleet.workers:
        raise ConfigError("workers for both are of a server of their own: leave --workers out beside --prefill")
    if Path(model).expanduser().exists():
        raise ConfigError(f"{model} is a folder or file of this machine: name a model that every pod can fetch")
    secrets = Secrets(config.api_key_secret, config.hub_token_secret, config.cluster_secret)
    launch = LaunchConfig(launcher="join", worker_listen=f"tcp://0.0.0.0:{WORKER_PORT}")
    settings: dict[str, Any] = {}
    workers: _Pods = []
    for role, count in (("prefill", fleet.prefill), ("decode", fleet.decode)):
        target = (config.prefill_target if role == "prefill" else None) or config.target
        devices = _devices(target, config.topology)
        own = changed(engine, fleet.prefill_set if role == "prefill" else fleet.decode_set)
        filled = _filling(own, devices, target)
        if filled != own:
            settings[f"{role}_set"] = (*getattr(fleet, f"{role}_set"), f"tp={filled.tp}")
        args = ["worker", f"tcp://{config.name}-workers:{WORKER_PORT}", "--role", role, "--log-format", "json"]
        memory = config.memory_bytes or _memory(model, filled, devices)
        pod = Pod(
            config.image, args, config.cpus, memory, devices, Secrets(None, secrets.hub_token, secrets.cluster), 0
        )
        workers.append((role, count, replace(pod, cache_claim=config.cache_claim, http=False, ports=())))
    fleet = replace(fleet, **settings)
    args = ["serve", model, *flags(_open(server)), *flags(engine), *flags(fleet), *flags(launch)]
    front = Pod(config.image, args, "2", _SERVER_BYTES, None, secrets, server.drain_timeout, config.cache_claim)
    ports = (*front.ports, ("workers", WORKER_PORT))
    return [("server", 1, replace(front, ports=ports)), *workers]


def _open(server: ServerConfig) -> ServerConfig:
    if server.api_key_file is not None:
        raise ConfigError("a pod has no --api-key-file of this machine: put the key into a Secret, --api-key-secret")
    return replace(server, host="0.0.0.0", port=HTTP_PORT, log_format="json")


def _devices(target: str, topology: str | None) -> Devices | None:
    if target != "cpu":
        return Devices.of(target, target_of(target), 1, topology)
    if topology is not None:
        raise ConfigError("--topology is of TPUs")
    return None


def _filling(engine: EngineConfig, devices: Devices | None, target: str) -> EngineConfig:
    """The settings of an engine on all of a pod's devices: one replica on them all, if it does not say otherwise."""
    if devices is None:
        return engine
    if engine.tp * engine.dp == 1:
        return replace(engine, tp=devices.count)
    if engine.tp * engine.dp != devices.count:
        raise ConfigError(f"--tp {engine.tp} times --dp {engine.dp} are not the {devices.count} devices of {target}")
    return engine


def _memory(model: str, engine: EngineConfig, devices: Devices | None) -> int:
    """Bytes that a pod needs. On a CPU weights of 16 bits become 32, and are packed a second time while they load."""
    if devices is not None:
        return _ACCELERATOR_BYTES
    from slipstream.checkpoint import resolve

    try:
        path = resolve(model, offline=True)
    except ModelNotFound:
        raise ConfigError(
            f"{model} is not on this machine, so its size is not known: say --memory-bytes, or slipstream pull {model}"
        ) from None
    stored = path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return _SERVER_BYTES + 2 * stored + (engine.kv_bytes or _CPU_KV_BYTES)
