"""The store: what is broken, foreign or stale is never used, and nothing that is wrong with the disk is fatal."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from slipstream.hardware import store as module
from slipstream.hardware.store import ALIGNMENT, Store, name_of

PARTS = {"one": b"first" * 1000, "none": b"", "two": bytes(range(256)) * 64}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    kept = Store(tmp_path / "deep" / "kept", 2**20)
    assert kept.write("a", {"number": 3}, PARTS)
    return kept


def file_of(store: Store, name: str = "a") -> Path:
    return store.folder / f"{name}.kept"


def test_an_entry_comes_back_whole_and_aligned(store: Store) -> None:
    entry = store.read("a")
    assert entry is not None
    assert entry.facts == {"number": 3}
    assert {name: bytes(part) for name, part in entry.parts.items()} == PARTS
    for name in ("one", "two"):
        assert entry.parts[name].readonly
        assert np.frombuffer(entry.parts[name], np.uint8).ctypes.data % ALIGNMENT == 0


def test_what_was_never_kept_is_not_there(store: Store) -> None:
    assert store.read("b") is None
    assert Store(store.folder / "nowhere", 1).read("a") is None


def test_an_entry_without_parts_and_one_in_place_of_another(store: Store) -> None:
    assert store.write("a", {"number": 4}, {})
    entry = store.read("a")
    assert entry is not None and entry.facts == {"number": 4} and not entry.parts


def test_the_folder_and_its_files_are_the_users_alone(store: Store) -> None:
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert file_of(store).stat().st_mode & 0o077 == 0


def test_every_flipped_byte_is_found_and_the_entry_removed(store: Store) -> None:
    whole = file_of(store).read_bytes()
    header = int.from_bytes(whole[8:16], "little")
    places = {*range(0, 20 + header, 7), ALIGNMENT, ALIGNMENT + 4999, 3 * ALIGNMENT + 5, len(whole) - 1}
    for place in sorted(places):
        broken = bytearray(whole)
        broken[place] ^= 1
        file_of(store).write_bytes(broken)
        assert store.read("a") is None, place
        assert not file_of(store).exists()
    assert store.write("a", {}, PARTS) and store.read("a") is not None


def test_every_truncated_file_is_refused(store: Store) -> None:
    whole = file_of(store).read_bytes()
    for size in (0, 1, 19, 20, 60, ALIGNMENT, ALIGNMENT + 1, len(whole) - 1):
        file_of(store).write_bytes(whole[:size])
        assert store.read("a") is None, size


def test_an_entry_of_another_version_or_name_is_not_used(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(file_of(store), file_of(store, "b"))
    assert store.read("b") is None
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    assert store.read("a") is None


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_what_others_may_write_to_is_not_read(store: Store, mode: int, caplog: pytest.LogCaptureFixture) -> None:
    file_of(store).chmod(mode)
    assert store.read("a") is None and store.read("a") is None
    assert len(caplog.records) == 1, "the reason is told once"
    file_of(store).chmod(0o600)
    store.folder.chmod(0o700 | mode & 0o077)
    assert store.read("a") is None
    assert not store.write("b", {}, {})


def test_files_of_other_users_are_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    assert store.read("a") is None
    assert not store.write("b", {}, {})


def test_a_link_is_not_followed(store: Store) -> None:
    file_of(store, "b").symlink_to(file_of(store))
    assert store.read("b") is None


def test_a_disk_that_takes_nothing_is_told_once_and_not_fatal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Store(tmp_path / "kept", 2**20)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with caplog.at_level(logging.WARNING):
        assert not kept.write("a", {}, PARTS) and not kept.write("b", {}, PARTS)
    assert len(caplog.records) == 1 and "No space left" in caplog.text
    assert list(kept.folder.iterdir()) == [], "nothing half written is left"


def test_a_file_in_the_folders_place_is_not_fatal(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("")
    kept = Store(tmp_path / "kept" / "steps", 2**20)
    assert kept.read("a") is None and not kept.write("a", {}, PARTS)


def test_a_folder_that_may_only_be_read_serves(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(module.tempfile, "mkstemp", refuse)
    assert store.read("a") is not None
    assert not store.write("b", {}, PARTS)


def test_the_entries_used_longest_ago_make_room(tmp_path: Path) -> None:
    kept = Store(tmp_path / "kept", 5 * ALIGNMENT)
    part = {"data": bytes(ALIGNMENT)}  # with its header, two pages
    for age, name in enumerate(("a", "b")):
        kept.write(name, {}, part)
        os.utime(file_of(kept, name), (1000 + age, 1000 + age))
    assert kept.read("a") is not None  # used now
    kept.write("c", {}, part)
    assert [kept.read(name) is not None for name in "abc"] == [True, False, True]


def test_entries_in_whose_place_another_one_stands(store: Store) -> None:
    for name in ("ab-1", "ab-2", "b-1"):
        store.write(name, {}, {})
    store.remove_others("ab", "ab-2")
    assert [store.read(name) is not None for name in ("a", "ab-1", "ab-2", "b-1")] == [True, False, True, True]


def test_an_entry_larger_than_the_limit_is_not_kept(tmp_path: Path) -> None:
    kept = Store(tmp_path / "kept", ALIGNMENT)
    assert not kept.write("a", {}, {"data": bytes(ALIGNMENT)})
    assert list(kept.folder.iterdir()) == []


def test_what_a_crash_left_half_written_is_removed_in_time(store: Store) -> None:
    old, new = store.folder / "old.part", store.folder / "new.part"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    store.write("b", {}, {})
    assert not old.exists() and new.exists()


def _write_many(folder: Path, number: int) -> None:
    kept = Store(folder, 2**20)
    for _ in range(40):
        assert kept.write("a", {"number": number}, {"data": bytes([number]) * 50_000})
        entry = kept.read("a")
        assert entry is not None
        assert set(bytes(entry.parts["data"])) == {entry.facts["number"]}


def test_processes_that_write_at_once_never_see_half_an_entry(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_write_many, args=(tmp_path / "kept", n)) for n in (1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".kept"]


def test_names_follow_the_facts() -> None:
    assert name_of("step", {"a": 1, "b": [2]}) == name_of("step", {"b": [2], "a": 1})
    assert len({name_of(k, f) for k in ("x", "y") for f in ({"a": 1}, {"a": "1"}, {"a": 2}, {})}) == 8
