"""Manifests: an API server would take them, `slipstream` takes their command lines, and broken ones are refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from slipstream.cli.main import build as command_line
from slipstream.cli.manifests import ManifestsConfig, build, dump
from slipstream.cluster.fleet import FleetConfig
from slipstream.cluster.kubernetes import Devices, Names, Pod, Scaling, Secrets, groups, scaler
from slipstream.engine.config import EngineConfig
from slipstream.errors import ConfigError
from slipstream.hardware.profile import target_of
from slipstream.server.config import ServerConfig
from tests.cluster.kubernetes_rules import problems

Objects = dict[tuple[str, str], dict[str, Any]]
GIB = 2**30
APART = FleetConfig(prefill=2, decode=3, disagg_threshold=512)


def made(
    *,
    server: ServerConfig = ServerConfig(),
    engine: EngineConfig = EngineConfig(),
    fleet: FleetConfig = FleetConfig(),
    model: str = "org/model",
    **settings: Any,
) -> Objects:
    config = ManifestsConfig(**{"image": "registry/slipstream:1", "memory_bytes": 6 * GIB, **settings})
    text = dump(build(model, config, server, engine, fleet))
    assert "&id" not in text
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(text)}


def container(manifest: dict[str, Any]) -> dict[str, Any]:
    [only] = manifest["spec"]["template"]["spec"]["containers"]
    return only


def group() -> dict[str, Any]:
    """Four hosts of a TPU slice."""
    devices = Devices.of("v6e-4", target_of("v6e-4"), 4, "4x4")
    pod = Pod("i", ["serve", "org/model"], "8", 16 * GIB, devices, Secrets(cluster="s"), 30)
    return groups(Names("big"), 2, 4, pod, pod)


PLACEMENTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "cpu": lambda: list(made().values()),
    "everything": lambda: list(
        made(
            namespace="llm",
            target="h100-4",
            max_replicas=8,
            api_key_secret="keys",
            hub_token_secret="hub",
            cache_claim="models",
            server=ServerConfig(drain_timeout=60.5, cors_origins=("https://a.example", "https://b.example")),
            engine=EngineConfig(max_seqs=64, prefix_caching=False, quantization="int8"),
        ).values()
    ),
    "tpu, hpa": lambda: list(made(target="v6e-8", max_replicas=4, autoscaler="hpa").values()),
    "apart": lambda: list(made(target="v5e-4", prefill_target="v6e-8", fleet=APART, hub_token_secret="hub").values()),
    "groups": lambda: [group(), scaler(Names("big"), Scaling("keda", 0, 2, 8, "http://p:9090"), group())],
}


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_an_api_server_takes_them(placement: str) -> None:
    for manifest in PLACEMENTS[placement]():
        assert problems(manifest) == [], manifest["kind"]


def test_the_command_lines_are_slipstreams() -> None:
    server = ServerConfig(cors_origins=("https://a.example",), drain_timeout=60.5)
    engine = EngineConfig(max_seqs=64, prefix_caching=False, quantization="int8", tp=2)
    objects = made(server=server, engine=engine, fleet=FleetConfig(workers=2))
    args = container(objects["Deployment", "slipstream"])["args"]
    _, bound, _ = command_line().parse_args(args, print_error=False, exit_on_error=False)
    given = bound.arguments
    assert given["model"] == "org/model" and given["engine"] == engine and given["fleet"] == FleetConfig(workers=2)
    assert (given["server"].host, given["server"].port, given["server"].drain_timeout) == ("0.0.0.0", 8000, 60.5)
    assert given["server"].cors_origins == server.cors_origins


def test_workers_apart_find_the_server_before_it_is_ready() -> None:
    objects = made(target="v5e-4", prefill_target="v6e-8", fleet=APART)
    front = container(objects["Deployment", "slipstream"])
    _, bound, _ = command_line().parse_args(front["args"], print_error=False, exit_on_error=False)
    fleet, launch = bound.arguments["fleet"], bound.arguments["launch"]
    assert (fleet.prefill, fleet.decode, fleet.prefill_set, fleet.decode_set) == (2, 3, ("tp=8",), ("tp=4",))
    assert (launch.launcher, launch.worker_listen) == ("join", "tcp://0.0.0.0:5557")
    service = objects["Service", "slipstream-workers"]["spec"]
    assert service["publishNotReadyAddresses"] is True and service["ports"][0]["port"] == 5557
    assert {"name": "workers", "containerPort": 5557} in front["ports"]
    for role, count, chips in (("prefill", 2, "8"), ("decode", 3, "4")):
        deployment = objects["Deployment", f"slipstream-{role}"]
        assert deployment["spec"]["replicas"] == count
        worker = container(deployment)
        _, bound, _ = command_line().parse_args(worker["args"], print_error=False, exit_on_error=False)
        assert bound.arguments["server"] == "tcp://slipstream-workers:5557"
        assert bound.arguments["options"].role == role
        assert worker["resources"]["limits"]["google.com/tpu"] == chips
        assert "livenessProbe" not in worker
        names = {one["name"] for one in worker["env"]} & {one["name"] for one in front["env"]}
        assert "SLIPSTREAM_CLUSTER_SECRET" in names
    # What is scraped and what clients reach are the servers alone.
    labels = objects["Deployment", "slipstream-prefill"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Service", "slipstream"]["spec"]["selector"].items() - labels.items()


def test_nodes_and_resources() -> None:
    tpu = made(target="v6e-8")["Deployment", "slipstream"]
    assert tpu["spec"]["template"]["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "2x4",
    }
    assert container(tpu)["resources"]["limits"] == {"memory": "6144Mi", "google.com/tpu": "8"}
    assert container(tpu)["args"][-2:] == ["--tp", "8"]
    gpu = made(target="h100-2")["Deployment", "slipstream"]
    assert gpu["spec"]["template"]["spec"]["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert container(gpu)["resources"]["requests"]["nvidia.com/gpu"] == "2"
    cpu = made()["Deployment", "slipstream"]["spec"]["template"]["spec"]
    assert "nodeSelector" not in cpu and cpu["terminationGracePeriodSeconds"] == 50
    probes = container({"spec": {"template": {"spec": cpu}}})
    assert [probes[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")] == [
        "/ready",
        "/ready",
        "/health",
    ]
    leader = group()["spec"]["leaderWorkerTemplate"]["leaderTemplate"]["spec"]
    assert leader["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"


def test_memory_on_a_cpu_is_of_the_models_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(3 * 2**20))
    engine = EngineConfig(kv_bytes=100 * 2**20)
    objects = made(model=str(tmp_path), memory_bytes=None, engine=engine)
    assert container(objects["Deployment", "slipstream"])["resources"]["limits"]["memory"] == "2154Mi"


def test_no_secret_is_in_them() -> None:
    objects = made(api_key_secret="keys", fleet=APART, target="h100-1")
    for one in container(objects["Deployment", "slipstream"])["env"]:
        secret = one["name"].endswith(("KEY", "TOKEN", "SECRET"))
        assert ("value" in one) != secret


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"name": "Bad_Name"}, "--name"),
        ({"target": "v9-4"}, "not a target"),
        ({"topology": "2x2"}, "of TPUs"),
        ({"target": "v6e-4", "topology": "4x4"}, "not 4 chips"),
        ({"target": "v6e-4", "engine": EngineConfig(tp=2)}, "are not the 4 devices"),
        ({"max_replicas": 3, "replicas": 4}, "less than"),
        ({"fleet": APART, "replicas": 2}, "leave --replicas"),
        ({"fleet": APART, "model": "/"}, "every pod can fetch"),
        ({"server": ServerConfig(api_key_file=Path("k"))}, "--api-key-secret"),
        ({"memory_bytes": None}, "--memory-bytes"),
    ],
)
def test_what_cannot_work_is_refused(settings: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        made(**settings)


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        *keys, last = path.split(".")
        at: Any = manifest
        for key in keys:
            at = at[int(key) if key.isdecimal() else key]
        if value is None:
            del at[last]
        else:
            at[last] = value

    return change


@cache
def _every() -> list[dict[str, Any]]:
    return [one for name in ("everything", "tpu, hpa", "groups") for one in PLACEMENTS[name]()]


_TEMPLATE = "spec.leaderWorkerTemplate.workerTemplate.spec.containers.0"
BROKEN: list[tuple[str, str, Any]] = [
    ("Deployment", "apiVersion", "apps/v2"),
    ("Deployment", "spec.replicas", "two"),
    ("Deployment", "spec.replica", 2),
    ("Deployment", "spec.template.spec.containers.0.ports.0.containerPort", "8000"),
    ("Deployment", "spec.template.spec.containers.0.livenessProbe.httpGet.prot", 1),
    ("Deployment", "spec.template.spec.terminationGracePeriodSeconds", 30.5),
    ("Deployment", "spec.selector", None),
    ("Service", "spec.ports.0.port", None),
    ("HorizontalPodAutoscaler", "spec.maxReplicas", None),
    ("HorizontalPodAutoscaler", "spec.metrics.0.pods.target.averageValu", "8"),
    ("PodMonitor", "spec.selector", None),
    ("PodMonitor", "spec.podMetricsEndpoints.0.interval", "15 seconds"),
    ("PodMonitor", "spec.podMetricsEndpoints.0.prot", "http"),
    ("ScaledObject", "spec.minReplicaCount", 9),
    ("ScaledObject", "spec.triggers", []),
    ("ScaledObject", "spec.triggers.0.metadata.threshold", 8),
    ("ScaledObject", "spec.maxReplicaCount", None),
    ("LeaderWorkerSet", "metadata.name", "1big"),
    ("LeaderWorkerSet", "spec.leaderWorkerTemplate.size", 0),
    ("LeaderWorkerSet", "spec.replicas", 1_000_000_000),
    ("LeaderWorkerSet", "spec.rolloutStrategy.rollingUpdateConfiguration.maxUnavailable", 0),
    ("LeaderWorkerSet", "spec.leaderWorkerTemplate.restartPolicy", "Always"),
    ("LeaderWorkerSet", "spec.leaderWorkerTemplate.workerTemplate", None),
    ("LeaderWorkerSet", f"{_TEMPLATE}.imagePullPolice", "Always"),
]


@pytest.mark.parametrize(("kind", "path", "value"), BROKEN)
def test_a_broken_one_is_refused(kind: str, path: str, value: Any) -> None:
    manifest = copy.deepcopy(next(one for one in _every() if one["kind"] == kind))
    if path == "spec.maxReplicaCount":  # then 100 is the most
        manifest["spec"]["minReplicaCount"] = 101
    _set(path, value)(manifest)
    try:
        found = problems(manifest)
    except KeyError as error:  # a template that is not there
        found = [str(error)]
    assert found
