"""The host as this process may use it: CPUs and memory within affinity masks and cgroup limits (v1 and v2).

A container with two CPUs of a 96-core machine has two CPUs. Libraries that ask the operating system alone start 96
threads and plan with all of the machine's memory; this module reads what the limits leave.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

ISA_FLAGS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
"""Instruction sets that matter to matrix products, under Linux's names, x86 then ARM."""

_UNLIMITED = 1 << 60
"""cgroup v1 writes "no limit" as a number near 2^63, rounded to a page."""


@dataclass(frozen=True)
class Host:
    """What the process may use. Memory in bytes.

    `affinity`: CPUs in the process's mask. `cpu_quota`: CPU time a second that cgroups allow, in CPUs; None without a
    limit. `memory_total` and `memory_available` are the machine's or the tightest cgroup's, whichever is smaller;
    page cache that can be dropped counts as available.
    """

    affinity: int
    cpu_quota: float | None
    memory_total: int
    memory_available: int
    cpu_model: str
    isa: tuple[str, ...]

    @property
    def cpus(self) -> int:
        """Threads worth starting: the mask's size, cut to the quota (rounded up), at least one."""
        quota = self.affinity if self.cpu_quota is None else math.ceil(self.cpu_quota)
        return max(1, min(self.affinity, quota))


def read_host(root: Path = Path("/"), affinity: Collection[int] | None = None) -> Host:
    """Read the host's facts from `root`/proc and `root`/sys; where there is no /proc (macOS), from sysconf.

    `affinity`: the CPUs of the mask; None asks the operating system. Nothing is raised for files that are missing or
    cannot be read: their limit then does not count.
    """
    cpu_model, isa = _cpu(root)
    total, available = _machine_memory(root)
    for limit, used in _memory_limits(root):
        total = min(total, limit)
        available = min(available, max(limit - used, 0))
    return Host(
        affinity=len(affinity) if affinity is not None else _mask_size(),
        cpu_quota=min(_cpu_quotas(root), default=None),
        memory_total=total,
        memory_available=available,
        cpu_model=cpu_model,
        isa=isa,
    )


def cpu_features(root: Path = Path("/")) -> tuple[str, ...]:
    """All that the CPU says it can do, sorted: code compiled for one set may not run on another."""
    for key, value in _fields(root / "proc/cpuinfo", ":"):
        if key in ("flags", "Features"):
            return tuple(sorted(value.split()))
    return (platform.machine(), platform.processor())


def _mask_size() -> int:
    mask = getattr(os, "sched_getaffinity", None)  # Linux alone has masks.
    return len(mask(0)) if mask else os.cpu_count() or 1


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _fields(path: Path, separator: str | None) -> Iterator[tuple[str, str]]:
    for line in _text(path).splitlines():
        key, *rest = line.split(separator, 1)
        if rest:
            yield key.strip(), rest[0].strip()


def _cpu(root: Path) -> tuple[str, tuple[str, ...]]:
    found: dict[str, str] = {}
    for key, value in _fields(root / "proc/cpuinfo", ":"):
        found.setdefault(key, value)
    flags = set((found.get("flags") or found.get("Features") or "").split())
    model = found.get("model name") or platform.processor() or platform.machine()
    return model, tuple(flag for flag in ISA_FLAGS if flag in flags)


def _machine_memory(root: Path) -> tuple[int, int]:
    kibibytes = {key: value.split()[0] for key, value in _fields(root / "proc/meminfo", ":") if value}
    if "MemTotal" in kibibytes:
        total = int(kibibytes["MemTotal"]) * 1024
        return total, int(kibibytes.get("MemAvailable", kibibytes.get("MemFree", "0"))) * 1024
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total, total


def _cgroups(root: Path, controller: str) -> Iterator[tuple[bool, Path]]:
    """The process's cgroup folders for a controller, from its own up to the mount's root, each with "is v2".

    A container without a cgroup namespace sees a path that its mount does not have; the folders that exist count.
    """
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        v2 = number == "0" and not controllers
        if not v2 and controller not in controllers.split(","):
            continue
        top = mount if v2 else mount / controller
        folder = top / path.lstrip("/")
        for candidate in (folder, *folder.parents):
            if candidate.is_dir():
                yield v2, candidate
            if candidate == top:
                break


def _cpu_quotas(root: Path) -> Iterator[float]:
    for v2, folder in _cgroups(root, "cpu"):
        if v2:
            quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
        else:
            quota = _text(folder / "cpu.cfs_quota_us").strip()
            period = _text(folder / "cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            yield int(quota) / int(period)


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use that cannot be dropped) of each cgroup that has a limit."""
    for v2, folder in _cgroups(root, "memory"):
        limit = _number(folder / ("memory.max" if v2 else "memory.limit_in_bytes"))
        if limit is None or limit >= _UNLIMITED:
            continue
        used = _number(folder / ("memory.current" if v2 else "memory.usage_in_bytes")) or 0
        stat = dict(_fields(folder / "memory.stat", None))
        droppable = int(stat.get("inactive_file" if v2 else "total_inactive_file", "0"))
        yield limit, max(used - droppable, 0)
