"""Kubernetes manifests of a placement, as plain dicts: who runs where, with what, and how it is watched and scaled.

Where a field's reason is not plain from its name, it is in docs/kubernetes.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

from slipstream.errors import ConfigError
from slipstream.hardware.profile import Target

Manifest = dict[str, Any]

HTTP_PORT, WORKER_PORT, GROUP_PORT = 8000, 5557, 5558
WAITING = "vllm:num_requests_waiting"
DRAIN_MARGIN = 20
"""Seconds beyond the drain's time that a pod has to end: five before it, for endpoints to forget the pod."""

_NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_LONGEST_NAME = 40  # LeaderWorkerSet and the names made from it add up to 23 of the 63 that a label may have.


@dataclass(frozen=True)
class Accelerator:
    """How a cluster names a kind of device: the resource of a pod, and the labels of its nodes."""

    resource: str
    label: str
    value: str
    topology_label: str | None = None


def _tpu(value: str) -> Accelerator:
    return Accelerator(
        "google.com/tpu", "cloud.google.com/gke-tpu-accelerator", value, "cloud.google.com/gke-tpu-topology"
    )


def _gpu(value: str) -> Accelerator:
    return Accelerator("nvidia.com/gpu", "cloud.google.com/gke-accelerator", value)


ACCELERATORS = {
    "v5e": _tpu("tpu-v5-lite-podslice"),
    "v6e": _tpu("tpu-v6e-slice"),
    "tpu7x": _tpu("tpu7x"),
    "h100": _gpu("nvidia-h100-80gb"),
    "h200": _gpu("nvidia-h200-141gb"),
    "b200": _gpu("nvidia-b200"),
}
"""By the first part of a target's name; the labels are GKE's."""


@dataclass(frozen=True)
class Devices:
    """The accelerators of one pod: `count` of them; `topology`: of the slice that all pods of a group share."""

    kind: str
    count: int
    topology: str | None = None

    @classmethod
    def of(cls, name: str, target: Target, hosts: int, topology: str | None) -> Devices:
        """Those of a target such as v6e-8 on each of `hosts`. Raises ConfigError for a topology of another size."""
        if target.profile.platform != "tpu":
            if topology is not None:
                raise ConfigError(f"--topology is of TPUs; {name} has none")
            return cls(name.rpartition("-")[0], target.count)
        if topology is None:
            if hosts > 1:
                raise ConfigError(f"several hosts of {name}: name the slice that they make up, such as --topology 4x4")
            topology = target.topology.name.partition(":")[2]
        sides = topology.split("x")
        if not all(side.isdecimal() for side in sides) or prod(map(int, sides)) != target.count * hosts:
            raise ConfigError(f"--topology {topology} is not {target.count * hosts} chips, which {hosts} x {name} are")
        return cls(name.rpartition("-")[0], target.count, topology)

    @property
    def resources(self) -> dict[str, str]:
        """What a pod asks for."""
        return {ACCELERATORS[self.kind].resource: str(self.count)}

    @property
    def selector(self) -> dict[str, str]:
        """Labels of the nodes that have it."""
        accelerator = ACCELERATORS[self.kind]
        labels = {accelerator.label: accelerator.value}
        if accelerator.topology_label is not None and self.topology is not None:
            labels[accelerator.topology_label] = self.topology
        return labels


@dataclass(frozen=True)
class Secrets:
    """Secrets that exist in the cluster, each by its name; its keys are `api-key`, `token` and `secret`."""

    api_key: str | None = None
    hub_token: str | None = None
    cluster: str | None = None

    @property
    def env(self) -> list[Manifest]:
        """Variables that take their values from them."""
        wanted = (
            ("SLIPSTREAM_API_KEY", self.api_key, "api-key"),
            ("HF_TOKEN", self.hub_token, "token"),
            ("SLIPSTREAM_CLUSTER_SECRET", self.cluster, "secret"),
        )
        return [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
            for name, secret, key in wanted
            if secret is not None
        ]


@dataclass(frozen=True)
class Pod:
    """What one pod runs. `args`: of `slipstream`. `http`: it answers HTTP; else it is asked nothing."""

    image: str
    args: list[str]
    cpus: str
    memory_bytes: int
    devices: Devices | None
    secrets: Secrets
    drain_seconds: float
    cache_claim: str | None = None
    http: bool = True
    ports: tuple[tuple[str, int], ...] = (("http", HTTP_PORT),)

    def template(self, labels: dict[str, str]) -> Manifest:
        """The pod's template."""
        asked = {"cpu": self.cpus, "memory": f"{-(-self.memory_bytes // 2**20)}Mi"}
        devices = self.devices.resources if self.devices else {}
        container: Manifest = {
            "name": "slipstream",
            "image": self.image,
            "command": ["slipstream"],
            "args": self.args,
            "env": [
                {"name": "SLIPSTREAM_CACHE", "value": "/cache/slipstream"},
                {"name": "HF_HOME", "value": "/cache/huggingface"},
                *self.secrets.env,
            ],
            "ports": [{"name": name, "containerPort": port} for name, port in self.ports],
            "resources": {"requests": asked | devices, "limits": {"memory": asked["memory"]} | devices},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "cache", "mountPath": "/cache"}, {"name": "shm", "mountPath": "/dev/shm"}],
        }
        grace = int(DRAIN_MARGIN)
        if self.http:
            grace += int(self.drain_seconds)
            container |= _probes()
        claim = {"persistentVolumeClaim": {"claimName": self.cache_claim}} if self.cache_claim else {"emptyDir": {}}
        spec: Manifest = {
            "terminationGracePeriodSeconds": grace,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "fsGroup": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": "cache", **claim}, {"name": "shm", "emptyDir": {"medium": "Memory"}}],
        }
        if self.devices is not None:
            spec["nodeSelector"] = self.devices.selector
            spec["tolerations"] = [
                {"key": ACCELERATORS[self.devices.kind].resource, "operator": "Exists", "effect": "NoSchedule"}
            ]
        return {"metadata": {"labels": labels}, "spec": spec}


def _probes() -> Manifest:
    def get(path: str, period: int, failures: int) -> Manifest:
        probe = {"httpGet": {"path": path, "port": "http"}, "periodSeconds": period, "failureThreshold": failures}
        return probe | {"timeoutSeconds": 5}

    return {
        # Loading and compiling a large model takes minutes, fetching it longer: an hour, then the pod is started again.
        "startupProbe": get("/ready", 10, 360),
        "readinessProbe": get("/ready", 5, 2),
        "livenessProbe": get("/health", 10, 6),
        # Signalled, the server refuses new requests at once; until then the endpoints still name it.
        "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
    }


@dataclass(frozen=True)
class Scaling:
    """How many replicas: from `least` to `most`, so that `waiting` requests wait at each.

    `prometheus`: where KEDA asks for them.
    """

    kind: Literal["keda", "hpa"]
    least: int
    most: int
    waiting: int
    prometheus: str

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises ConfigError."""
        if self.least > self.most:
            raise ConfigError(f"--max-replicas {self.most} is less than --replicas {self.least}")
        if self.least < 1 and self.kind == "hpa":
            raise ConfigError("an HPA cannot scale to 0: use --autoscaler keda")
        if self.waiting < 1:
            raise ConfigError(f"--waiting must be at least 1, got {self.waiting}")


@dataclass(frozen=True)
class Names:
    """What the objects are called, and where they are."""

    name: str
    namespace: str | None = None

    def __post_init__(self) -> None:
        """Refuse a name that Kubernetes would. Raises ConfigError."""
        if not _NAME.fullmatch(self.name) or len(self.name) > _LONGEST_NAME:
            raise ConfigError(
                f"--name {self.name!r}: at most {_LONGEST_NAME} of a-z, 0-9 and hyphens, the first of them a letter"
            )

    def labels(self, component: str) -> dict[str, str]:
        """Labels of one kind of pod."""
        return {"app.kubernetes.io/name": "slipstream", "app.kubernetes.io/instance": self.name, "component": component}

    def object(self, version: str, kind: str, name: str, spec: Manifest) -> Manifest:
        """An object."""
        metadata: Manifest = {"name": name, "labels": self.labels("server")}
        if self.namespace is not None:
            metadata["namespace"] = self.namespace
        return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


def deployment(names: Names, component: str, replicas: int, pod: Pod) -> Manifest:
    """Pods that are each whole. The server's has the placement's own name."""
    labels = names.labels(component)
    name = names.name if component == "server" else f"{names.name}-{component}"
    # An accelerator is seldom free twice: the old pod goes first.
    rollout = {"maxSurge": 0, "maxUnavailable": 1} if pod.devices else {"maxSurge": 1, "maxUnavailable": 0}
    spec = {
        "replicas": replicas,
        "selector": {"matchLabels": labels},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": rollout},
        "template": pod.template(labels),
    }
    return names.object("apps/v1", "Deployment", name, spec)


def groups(names: Names, replicas: int, hosts: int, leader: Pod, follower: Pod) -> Manifest:
    """Pods of which `hosts` make up one model: a LeaderWorkerSet. One that dies takes its group with it."""
    follower = replace(follower, http=False, ports=())
    spec = {
        "replicas": replicas,
        # Followers join the leader's jax.distributed group, whose start waits for them: not for its readiness.
        "startupPolicy": "LeaderCreated",
        "rolloutStrategy": {
            "type": "RollingUpdate",
            "rollingUpdateConfiguration": {"maxUnavailable": 1, "maxSurge": 0},
        },
        "leaderWorkerTemplate": {
            "size": hosts,
            "restartPolicy": "RecreateGroupOnPodRestart",
            "leaderTemplate": leader.template(names.labels("server")),
            "workerTemplate": follower.template(names.labels("follower")),
        },
    }
    return names.object("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", names.name, spec)


def service(names: Names) -> Manifest:
    """The server's address. Of groups their leaders alone."""
    ports = [{"name": "http", "port": HTTP_PORT, "targetPort": "http"}]
    return names.object("v1", "Service", names.name, {"selector": names.labels("server"), "ports": ports})


def worker_service(names: Names) -> Manifest:
    """Where workers find the server, which is not ready before they have: so it is named before it is."""
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": names.labels("server"),
        "ports": [{"name": "workers", "port": WORKER_PORT, "targetPort": "workers"}],
    }
    return names.object("v1", "Service", f"{names.name}-workers", spec)


def pod_monitor(names: Names, interval_seconds: int) -> Manifest:
    """What Prometheus' operator scrapes."""
    spec = {
        "selector": {"matchLabels": names.labels("server")},
        "podMetricsEndpoints": [{"port": "http", "path": "/metrics", "interval": f"{interval_seconds}s"}],
    }
    return names.object("monitoring.coreos.com/v1", "PodMonitor", names.name, spec)


def scaler(names: Names, scaling: Scaling, scaled: Manifest) -> Manifest:
    """What changes the number of replicas of `scaled`, a Deployment or LeaderWorkerSet."""
    target = {"apiVersion": scaled["apiVersion"], "kind": scaled["kind"], "name": scaled["metadata"]["name"]}
    behavior = {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "policies": [{"type": "Percent", "value": 100, "periodSeconds": 60}],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": 600,
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": 120}],
        },
    }
    if scaling.kind == "hpa":
        metric = {"name": WAITING.replace(":", "_")}
        value = {"type": "AverageValue", "averageValue": str(scaling.waiting)}
        spec: Manifest = {
            "scaleTargetRef": target,
            "minReplicas": scaling.least,
            "maxReplicas": scaling.most,
            "metrics": [{"type": "Pods", "pods": {"metric": metric, "target": value}}],
            "behavior": behavior,
        }
        return names.object("autoscaling/v2", "HorizontalPodAutoscaler", names.name, spec)
    # Prometheus' operator gives each series its pod; pods of a placement begin with its name.
    where = f'pod=~"{names.name}-.*"' + (f',namespace="{names.namespace}"' if names.namespace else "")
    trigger = {
        "serverAddress": scaling.prometheus,
        "query": f"sum({WAITING}{{{where}}})",
        "threshold": str(scaling.waiting),
        "activationThreshold": "0",
    }
    spec = {
        "scaleTargetRef": target,
        "minReplicaCount": scaling.least,
        "maxReplicaCount": scaling.most,
        "pollingInterval": 15,
        "cooldownPeriod": 300,
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": behavior}},
        "triggers": [{"type": "prometheus", "metadata": trigger}],
    }
    return names.object("keda.sh/v1alpha1", "ScaledObject", names.name, spec)
