"""Processors for several processes, on machines that are written down."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipstream.hardware.processors import divided


def machine(root: Path, cores: list[tuple[int, int]]) -> Path:
    for processor, (package, core) in enumerate(cores):
        folder = root / f"sys/devices/system/cpu/cpu{processor}/topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{package}\n")
        (folder / "core_id").write_text(f"{core}\n")
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text("MemTotal: 1024 kB\nMemAvailable: 1024 kB\n")
    return root


@pytest.mark.parametrize(
    ("wanted", "parts"),
    [
        ([None], [(0, 4, 1, 5, 2, 6, 3, 7)]),
        ([None, None], [(0, 4, 1, 5), (2, 6, 3, 7)]),
        ([None, None, None], [(0, 4, 1), (5, 2, 6), (3, 7)]),
        ([2, None], [(0, 4), (1, 5, 2, 6, 3, 7)]),
        ([2, None, 3, None], [(0, 4), (1, 5), (2, 6, 3), (7,)]),
        ([4, 4], [(0, 4, 1, 5), (2, 6, 3, 7)]),
        ([8, None], None),
        ([5, 4], None),
        ([None] * 9, None),
    ],
)
def test_threads_of_a_core_stay_together(
    tmp_path: Path, wanted: list[int | None], parts: list[tuple[int, ...]] | None
) -> None:
    root = machine(tmp_path, [(0, core % 4) for core in range(8)])
    assert divided(wanted, root, range(8)) == parts


def test_packages_stay_together_and_the_mask_counts(tmp_path: Path) -> None:
    root = machine(tmp_path, [(processor % 2, processor // 2) for processor in range(8)])
    assert divided([None, None], root, range(8)) == [(0, 2, 4, 6), (1, 3, 5, 7)]
    assert divided([None, None], root, {3, 4, 5}) == [(4, 3), (5,)]


def test_a_control_group_that_allows_less_time(tmp_path: Path) -> None:
    root = machine(tmp_path, [(0, core) for core in range(4)])
    (root / "proc/self").mkdir()
    (root / "proc/self/cgroup").write_text("0::/\n")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/cpu.max").write_text("200000 100000\n")
    assert divided([None, None], root, range(4)) is None
