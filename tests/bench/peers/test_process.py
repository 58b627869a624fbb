"""A participant's process: the protocol, its deaths, its being stopped, its memory. With the real driver loop too."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from slipstream.bench.peers.drivers import protocol
from slipstream.bench.peers.process import Dead, Failed, Process

FAKE = Path(__file__).parent / "fake.py"


def settings(folder: Path, **changes: object) -> str:
    plain = {"name": "fake", "speed": 10.0, "first": 0.5, "log": str(folder / "commands")}
    return json.dumps(plain | changes)


def start(folder: Path, timeout: float = 30.0, **changes: object) -> Process:
    return Process([sys.executable, FAKE, settings(folder, **changes)], {}, folder / "log", timeout)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def until(pid: int, wanted: str) -> None:
    deadline = time.monotonic() + 10
    while state(pid) not in wanted:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether it has ended: there is no such process, or nobody has asked for its status yet."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if state(pid) == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def test_commands_and_answers(tmp_path: Path) -> None:
    with start(tmp_path) as process:
        assert process.ready() > 0
        assert process.versions == {"fake": "fake"}
        assert process.generate([[301, 302], [303, 304]], 3) == [[0.5, 0.6, 0.7]] * 2
    assert (tmp_path / "commands").read_text() == "fake 2 2 3 301\n"


def test_an_error_is_told_and_the_process_lives_on(tmp_path: Path) -> None:
    with start(tmp_path, fault="error", when=2) as process:
        process.ready()
        with pytest.raises(Failed, match="Trouble: as asked"):
            process.generate([[301], [302]], 1)
        assert process.generate([[301]], 1) == [[0.5]]


@pytest.mark.parametrize(
    ("fault", "how"),
    [("killed", "it ended with signal SIGKILL"), ("exits", "it ended with exit status 3: out of luck")],
)
def test_a_death_is_told_with_its_cause(tmp_path: Path, fault: str, how: str) -> None:
    with start(tmp_path, fault=fault, when=1) as process:
        process.ready()
        with pytest.raises(Dead, match=how):
            process.generate([[301]], 1)
        with pytest.raises(Dead, match=how):
            process.generate([[301]], 1)


def test_one_that_does_not_answer_is_ended(tmp_path: Path) -> None:
    with start(tmp_path, timeout=3.0, fault="hangs", when=1) as process:
        process.ready()
        with pytest.raises(Dead, match="no answer within 3 s"):
            process.generate([[301]], 1)
        assert process.peak_memory() == 0


CHILD = """
import subprocess, sys, json
child = subprocess.Popen([sys.executable, "-c", "import time; data = bytearray(64 << 20); time.sleep(600)"],
                         start_new_session=True)
print(json.dumps({"ready": {"versions": {"child": str(child.pid)}}}), flush=True)
sys.stdin.read()
"""


def test_children_are_stopped_counted_and_ended_with_it(tmp_path: Path) -> None:
    with Process([sys.executable, "-c", CHILD], {}, tmp_path / "log", 30) as process:
        process.ready()
        child = int(process.versions["child"])
        deadline = time.monotonic() + 10
        while process.peak_memory() < 64 + 8 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.peak_memory() > 64 + 8  # the child's 64 MiB, and an interpreter
        process.pause()
        until(child, "T")
        process.resume()
        until(child, "SR")
        process.pause()  # it is ended even so
    assert gone(child)


DRIVER = """
import os
from .protocol import Clock, Prompts

class Toy:
    versions = {"toy": "1"}
    def __init__(self, settings):
        if settings.get("broken"):
            raise OSError("no such model")
        os.write(1, b"noise that a library prints\\n")
    def generate(self, prompts: Prompts, clock: Clock) -> None:
        if len(prompts) == 3:
            raise MemoryError("too many\\nstreams")
        for index, _ in enumerate(prompts):
            clock.came(index, clock.tokens - (len(prompts) == 2))

load = Toy
"""


def driven(folder: Path, **settings: object) -> Process:
    """The real start.py and protocol.py, with a driver beside them."""
    real = Path(protocol.__file__).parent
    for name in ("__init__.py", "start.py", "protocol.py"):
        (folder / name).write_text((real / name).read_text())
    (folder / "json.py").write_text("raise ImportError('the folder must not be on the path')")
    (folder / "toy.py").write_text(DRIVER)
    command = [sys.executable, "-P", folder / "start.py", "toy", json.dumps(settings)]
    return Process(command, {"PYTHONPATH": ""}, folder / "log", 30)


def test_the_drivers_loop(tmp_path: Path) -> None:
    with driven(tmp_path) as process:
        process.ready()
        assert process.versions == {"toy": "1"}
        (times,) = process.generate([[301]], 4)
        assert len(times) == 4 and times == sorted(times) and times[0] >= 0
        with pytest.raises(Failed, match=r"RuntimeError: 5 tokens were asked for, \[4\] came"):
            process.generate([[301], [302]], 5)
        with pytest.raises(Failed, match="MemoryError: too many streams"):
            process.generate([[301], [302], [303]], 1)
        assert len(process.generate([[301]], 2)[0]) == 2
    assert "noise that a library prints" in (tmp_path / "log").read_text()


def test_a_driver_that_cannot_load_says_why(tmp_path: Path) -> None:
    with driven(tmp_path, broken=True) as process, pytest.raises(Failed, match="OSError: no such model"):
        process.ready()
