"""The host reader on trees of /proc and /sys like those of real machines and containers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from slipstream.hardware.host import read_host

GIB = 1 << 30

CPUINFO = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse4_2 avx avx2 fma f16c avx512f avx512_vnni amx_int8

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
MEMINFO = f"MemTotal:  {16 * GIB // 1024} kB\nMemFree:  1024 kB\nMemAvailable:  {12 * GIB // 1024} kB\n"


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in {"proc/cpuinfo": CPUINFO, "proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_machine_without_limits(tmp_path: Path) -> None:
    host = read_host(tree(tmp_path, {"proc/self/cgroup": "0::/user.slice\n"}), affinity=range(8))
    assert (host.affinity, host.cpu_quota, host.cpus) == (8, None, 8)
    assert (host.memory_total, host.memory_available) == (16 * GIB, 12 * GIB)
    assert host.cpu_model == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"
    assert host.isa == ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "amx_int8")


def test_arm_features(tmp_path: Path) -> None:
    cpuinfo = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm bf16 sve\n"
    host = read_host(tree(tmp_path, {"proc/cpuinfo": cpuinfo}), affinity=[0])
    assert host.isa == ("asimd", "asimddp", "i8mm", "bf16", "sve")


def test_v2_takes_the_tightest_limit_on_the_way_up(tmp_path: Path) -> None:
    host = read_host(
        tree(
            tmp_path,
            {
                "proc/self/cgroup": "0::/pod/container\n",
                "sys/fs/cgroup/cpu.max": "max 100000\n",
                "sys/fs/cgroup/pod/cpu.max": "150000 100000\n",
                "sys/fs/cgroup/pod/container/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/pod/memory.max": f"{4 * GIB}\n",
                "sys/fs/cgroup/pod/memory.current": f"{3 * GIB}\n",
                "sys/fs/cgroup/pod/memory.stat": f"anon 1\ninactive_file {GIB}\n",
                "sys/fs/cgroup/pod/container/memory.max": "max\n",
            },
        ),
        affinity=range(96),
    )
    assert (host.cpu_quota, host.cpus) == (1.5, 2)
    assert host.memory_total == 4 * GIB
    assert host.memory_available == 2 * GIB


def test_v1_with_a_path_that_the_container_does_not_see(tmp_path: Path) -> None:
    host = read_host(
        tree(
            tmp_path,
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n0::/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
                "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {GIB // 2}\n",
            },
        ),
        affinity=range(4),
    )
    assert (host.cpu_quota, host.cpus) == (0.5, 1)
    assert (host.memory_total, host.memory_available) == (2 * GIB, 2 * GIB - GIB // 2)


def test_v1_without_a_limit(tmp_path: Path) -> None:
    host = read_host(
        tree(
            tmp_path,
            {
                "proc/self/cgroup": "4:cpu:/\n3:memory:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000\n",
            },
        ),
        affinity=range(4),
    )
    assert (host.cpu_quota, host.cpus) == (None, 4)
    assert host.memory_total == 16 * GIB


def test_a_cgroup_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": f"{GIB}\n",
        "sys/fs/cgroup/memory.current": f"{2 * GIB}\n",
    }
    assert read_host(tree(tmp_path, files), affinity=[0]).memory_available == 0


@pytest.mark.parametrize("text", ["", "garbage\n", "max\n", "1 0\n"])
def test_unreadable_limits_do_not_count(tmp_path: Path, text: str) -> None:
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": text, "sys/fs/cgroup/memory.max": text}
    host = read_host(tree(tmp_path, files), affinity=range(2))
    assert (host.cpu_quota, host.memory_total) == (None, 16 * GIB)


def test_without_proc_the_operating_system_answers(tmp_path: Path) -> None:
    host = read_host(tmp_path)
    assert host.affinity >= 1
    assert host.memory_total > 0
    assert host.memory_available == host.memory_total


def test_this_machine() -> None:
    host = read_host()
    assert 1 <= host.cpus <= host.affinity
    assert 0 < host.memory_available <= host.memory_total
