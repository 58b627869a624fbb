"""The thread pool: every chunk exactly once, whoever calls, however many threads there are, after a fork too."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from slipstream.kernels.native.library import library

native = library()
assert native is not None, "build the native library first (see CONTRIBUTING.md)"
TINY = float(np.finfo(np.float32).tiny)


@pytest.fixture(autouse=True)
def first_thread_count() -> Iterator[None]:
    yield
    native.slipstream_set_threads(0)


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def count(chunks: int, work: int, repeats: int) -> None:
    """Run `repeats` regions and see that each chunk was called once in each."""
    counts = np.zeros(chunks + 1, np.uint32)
    for _ in range(repeats):
        native.slipstream_parallel_count(ctypes.c_int64(chunks), ctypes.c_int64(work), pointer(counts))
    assert (counts[:chunks] == repeats).all()
    assert counts[chunks] == 0


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_each_chunk_is_called_once(threads: int) -> None:
    native.slipstream_set_threads(threads)
    assert native.slipstream_threads() == threads
    for chunks in (0, 1, 2, 3, 7, 100):
        count(chunks, 50, 200)


def test_callers_do_not_disturb_one_another_while_the_thread_count_changes() -> None:
    failures: list[BaseException] = []

    def call() -> None:
        try:
            count(9, 100, 2000)
        except BaseException as failure:
            failures.append(failure)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for i in range(40):
        native.slipstream_set_threads(1 + i % 4)
    for caller in callers:
        caller.join()
    assert not failures


def test_helpers_that_slept_still_work() -> None:
    native.slipstream_set_threads(4)
    for _ in range(20):
        threading.Event().wait(0.002)  # longer than a helper spins
        count(16, 2000, 1)


def test_beside_busy_neighbours_each_chunk_is_called_once_and_the_caller_may_run_where_it_could() -> None:
    allowed = os.sched_getaffinity(0)
    program = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
    busy = [subprocess.Popen([sys.executable, "-S", "-c", program, str(processor)]) for processor in allowed]
    try:
        for threads in (2, 5):
            native.slipstream_set_threads(threads)
            count(6, 400_000, 100)  # long enough for a neighbour to get its turn inside of chunks
            assert os.sched_getaffinity(0) == allowed
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:os.fork.*:RuntimeWarning")
def test_a_forked_child_has_a_pool_of_its_own() -> None:
    native.slipstream_set_threads(3)
    count(8, 1000, 100)
    child = os.fork()
    if child == 0:
        try:
            count(8, 1000, 100)
            os._exit(0 if native.slipstream_threads() == 3 else 2)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    count(8, 1000, 100)


def test_denormals_are_flushed_inside_chunks_and_nowhere_else() -> None:
    native.slipstream_set_threads(2)
    for chunks in (1, 64):
        out = np.ones(chunks, np.float32)
        native.slipstream_parallel_halve(ctypes.c_int64(chunks), ctypes.c_float(TINY), pointer(out))
        assert not out.any()
    assert np.float32(TINY) * np.float32(0.5) > 0


def test_the_processors_counted_are_those_allowed() -> None:
    allowed = os.sched_getaffinity(0)
    assert 1 <= native.slipstream_available_processors() <= len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert native.slipstream_available_processors() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_the_first_thread_count_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPSTREAM_THREADS", "5")
    native.slipstream_set_threads(0)
    assert native.slipstream_threads() == 5
    monkeypatch.setenv("SLIPSTREAM_THREADS", "none")
    native.slipstream_set_threads(0)
    assert native.slipstream_threads() == native.slipstream_available_processors()
