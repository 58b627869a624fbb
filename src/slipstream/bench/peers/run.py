"""`slipstream bench peers`: rounds in alternation, each participant alone with the machine while it is measured."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from slipstream.bench.peers.environments import DRIVERS, Unavailable, install
from slipstream.bench.peers.forms import path_of
from slipstream.bench.peers.options import PeersOptions
from slipstream.bench.peers.participants import MODELS, PARTICIPANTS, Model, Participant
from slipstream.bench.peers.process import Dead, Failed, Process, last_line
from slipstream.bench.peers.progress import Bar
from slipstream.bench.peers.results import Results
from slipstream.bench.peers.workloads import LONGEST, MOST_STREAMS, WORKLOADS, Workload
from slipstream.checkpoint import Progress, open_checkpoint, resolve
from slipstream.errors import ConfigError
from slipstream.hardware.disk import cache_folder

FRESH = ("start", "memory-32")
"""What is measured of a process that has just begun; both of the same one."""

SURE_ROUNDS = 2
"""A peer that after so many rounds has not come to half of the best peer's median sits the workload out."""


@dataclass(frozen=True)
class Launch:
    """How a participant's process is started."""

    command: tuple[str | Path, ...]
    variables: dict[str, str]


Launcher = Callable[[Participant, Model, list[int], Progress], Launch]
"""Makes all that the participant needs, and says how to start it. Raises Unavailable if it cannot take part."""


def launch(participant: Participant, model: Model, cpus: list[int], progress: Progress) -> Launch:
    """The real `Launcher`: installs the environment and makes the model's file, at the first call."""

    def said(line: str) -> None:
        progress(f"install {participant.environment}: {line[:60]}", 0, None)

    python = Path(sys.executable) if participant.environment is None else install(participant.environment, said)
    settings = {
        "model": str(path_of(model, participant.form, progress)),
        "threads": len(cpus),
        "streams": MOST_STREAMS,
        "context": 2 * LONGEST,
        **participant.settings,
    }
    fill = {"cpus": ",".join(map(str, cpus)), "cache": str(cache_folder() / "peers" / "cache")}
    variables = {"OMP_NUM_THREADS": str(len(cpus)), "HF_HUB_OFFLINE": "1"}
    if participant.environment is not None:
        variables["PYTHONPATH"] = ""
    variables |= {name: value.format(**fill) for name, value in participant.variables.items()}
    return Launch((python, "-P", DRIVERS / "start.py", participant.driver, json.dumps(settings)), variables)


def read_bandwidth() -> float:
    """GB/s that Slipstream's threads read memory at, in a process of its own. Raises Failed."""
    done = subprocess.run([sys.executable, "-P", DRIVERS / "bandwidth.py"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"the bandwidth was not measured: {last_line(done.stderr)}")
    return float(done.stdout)


def bytes_a_token(model: Model) -> int:
    """Bytes of weights that a token has to read: every tensor of the file, the embedding only if it is the head too."""
    from slipstream.checkpoint.gguf_file import GgufFile

    path = resolve(model.name)
    file = GgufFile(path)
    tied = bool(open_checkpoint(path).config.get("tie_word_embeddings"))
    return sum(info.nbytes for name, info in file.tensors.items() if tied or name != "token_embd.weight")


@contextmanager
def pinned(threads: int | None) -> Iterator[list[int]]:
    """Leaves this process, and so all that it starts, the first `threads` of its CPUs. Raises ConfigError."""
    before = os.sched_getaffinity(0)
    cpus = sorted(before)[:threads]
    if threads is not None and len(cpus) < threads:
        raise ConfigError(f"--threads {threads} is more than the {len(cpus)} CPUs that this process may use")
    os.sched_setaffinity(0, cpus)
    try:
        yield cpus
    finally:
        os.sched_setaffinity(0, before)


class Entrant:
    """A participant that runs with one model. A process that dies is started again, once for each death."""

    def __init__(self, participant: Participant, model: str, results: Results, how: Launch, log: Path) -> None:
        self.participant = participant
        self._model = model
        self._results = results
        self._how = how
        self._log = log
        self._process: Process | None = None

    def key(self, workload: str) -> tuple[str, str, str]:
        """Where its numbers of a workload are kept."""
        return self._model, workload, self.participant.name

    def begin(self) -> None:
        """Start the process that rounds are measured with, and pause it. Raises Dead or Failed."""
        self._process = Process(self._how.command, self._how.variables, self._log)
        try:
            self._process.ready()
        except (Dead, Failed):
            self.end()
            raise
        self._results.versions[self.participant.name] = self._process.versions
        self._process.pause()

    def end(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def measure(self, name: str, seed: str) -> None:
        """One round's number of a workload that is a matter of times; a failure is kept as such."""
        workload, key = WORKLOADS[name], self.key(name)
        assert workload.number is not None
        try:
            if self._process is None:
                self.begin()
            assert self._process is not None
            self._process.resume()
            numbers = []
            for repeat in range(workload.repeats):
                prompts = workload.prompts(f"{seed}/{name}/{repeat}", MODELS[self._model].vocabulary)
                numbers.append(workload.number(self._process.generate(prompts, workload.output)))
            self._results.add(key, statistics.median(numbers))
        except Dead as error:
            self._results.fail(key, str(error))
            self.end()
        except (Failed, ValueError) as error:
            self._results.fail(key, str(error))
        finally:
            if self._process is not None:
                self._process.pause()

    def measure_fresh(self, names: Sequence[str], seed: str) -> None:
        """One round's start and peak memory, of a new process."""
        workload = WORKLOADS["memory-32"]
        left = list(names)
        with Process(self._how.command, self._how.variables, self._log) as fresh:
            try:
                seconds = fresh.ready()
                if "start" in left:
                    self._results.add(self.key("start"), seconds)
                    left.remove("start")
                if left:
                    prompts = workload.prompts(f"{seed}/fresh", MODELS[self._model].vocabulary)
                    fresh.generate(prompts, workload.output)
                    self._results.add(self.key("memory-32"), fresh.peak_memory())
            except (Dead, Failed) as error:
                for name in left:
                    self._results.fail(self.key(name), str(error))


def measure(
    options: PeersOptions,
    bar: Bar,
    *,
    participants: Sequence[Participant] = PARTICIPANTS,
    launcher: Launcher = launch,
    bandwidth: Callable[[], float] = read_bandwidth,
) -> Results:
    """All rounds of all models. Raises ConfigError; what goes wrong with a participant is in the results."""
    results = Results()
    with pinned(options.threads) as cpus, tempfile.TemporaryDirectory(prefix="slipstream-peers-") as logs:
        for model in options.model_names:
            with ExitStack() as ends:
                entrants = _enter(options, model, participants, results, launcher, cpus, Path(logs), bar)
                for entrant in entrants:
                    ends.callback(entrant.end)
                for entrant in list(entrants):
                    bar.doing(f"start {entrant.participant.label}")
                    try:
                        entrant.begin()
                    except (Dead, Failed) as error:
                        entrants.remove(entrant)
                        for name in _asked(options, entrant.participant):
                            results.fail(entrant.key(name), str(error))
                for number in range(options.rounds):
                    bar.round(MODELS[model].about, number)
                    _round(options, entrants, results, number, bar, bandwidth)
            if "bandwidth" in options.workload_names:
                _share(model, entrants, results)
    return results


def _enter(
    options: PeersOptions,
    model: str,
    participants: Sequence[Participant],
    results: Results,
    launcher: Launcher,
    cpus: list[int],
    logs: Path,
    bar: Bar,
) -> list[Entrant]:
    """Those that take part with `model`; of those that cannot, the reason is kept."""
    entrants = []
    for one in participants:
        names = _asked(options, one)
        chosen = one.name in options.peer_names if one.precision is None else one.precision in options.precision_names
        if model not in one.models or not chosen or not names:
            continue
        bar.doing(f"prepare {one.label}")
        try:
            how = launcher(one, MODELS[model], cpus, bar.progress)
        except Unavailable as error:
            for name in names:
                results.fail((model, name, one.name), str(error))
            continue
        entrants.append(Entrant(one, model, results, how, logs / f"{model}-{one.name}.log"))
    return entrants


def _asked(options: PeersOptions, participant: Participant) -> list[str]:
    """The workloads that count for a participant: those through HTTP are others' than Slipstream's in process."""

    def counts(name: str, workload: Workload) -> bool:
        if participant.precision is None:
            return name != "bandwidth"
        return workload.through_http == participant.http

    return [name for name in options.workload_names if counts(name, WORKLOADS[name])]


def _round(
    options: PeersOptions,
    entrants: list[Entrant],
    results: Results,
    number: int,
    bar: Bar,
    bandwidth: Callable[[], float],
) -> None:
    """Everything once. Who begins changes from round to round."""
    turn = number % max(1, len(entrants))
    order = entrants[turn:] + entrants[:turn]
    seed = f"{options.seed}/{number}"
    for name in options.workload_names:
        if name == "bandwidth":
            bar.doing("read bandwidth")
            try:
                results.bandwidth.append(bandwidth())
            except Failed as error:
                for entrant in entrants:
                    if name in _asked(options, entrant.participant):
                        results.fail(entrant.key(name), str(error))
            continue
        if name in FRESH:
            continue
        for entrant in order:
            if name in _asked(options, entrant.participant) and not _beaten(options, entrant, entrants, results, name):
                bar.doing(f"{name}: {entrant.participant.label}")
                entrant.measure(name, seed)
    for entrant in order:
        asked = [name for name in FRESH if name in _asked(options, entrant.participant)]
        left = [name for name in asked if not _beaten(options, entrant, entrants, results, name)]
        if left:
            bar.doing(f"start afresh: {entrant.participant.label}")
            entrant.measure_fresh(left, seed)


def _beaten(options: PeersOptions, entrant: Entrant, entrants: list[Entrant], results: Results, name: str) -> bool:
    """Whether a peer is so far from the best that its number matters no more."""
    mine = results.samples.get(entrant.key(name), [])
    if options.thorough or entrant.participant.precision is not None or len(mine) < SURE_ROUNDS:
        return False
    peers = [each for each in entrants if each.participant.precision is None]
    medians = [median for each in peers if (median := results.median(each.key(name))) is not None]
    if not medians:
        return False
    if WORKLOADS[name].higher_is_better:
        return max(mine) < max(medians) / 2
    return min(mine) > min(medians) * 2


def _share(model: str, entrants: list[Entrant], results: Results) -> None:
    """The share of the best bandwidth of all rounds that decoding one stream reads weights at."""
    best = max(results.bandwidth, default=0.0)
    if not best:
        return
    for entrant in entrants:
        if entrant.participant.precision is not None and not entrant.participant.http:
            for rate in results.samples.get(entrant.key("decode-1"), ()):
                share = 100 * rate * bytes_a_token(MODELS[model]) / (best * 1e9)
                results.add(entrant.key("bandwidth"), share)
