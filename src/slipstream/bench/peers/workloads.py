"""What is measured, and how each number follows from the times at which tokens came."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

Times = list[list[float]]
"""For each prompt, the seconds after all were handed over at which each of its tokens came."""


@dataclass(frozen=True)
class Workload:
    """One number of a participant. `streams` prompts of `prompt` tokens go in together, `output` tokens come of each.

    `metric` is the unit. `number` makes the number of the times; None where it is another thing than times that is
    measured: of a fresh process its start and its memory, of the machine its bandwidth. `repeats`: a round's number is
    the median of so many. `through_http`: Slipstream is measured as a server, its peers in process.
    """

    about: str
    metric: str
    higher_is_better: bool
    streams: int = 1
    prompt: int = 128
    output: int = 1
    repeats: int = 1
    number: Callable[[Times], float] | None = None
    through_http: bool = False

    @property
    def largest(self) -> int:
        """Tokens of a sequence at its end."""
        return self.prompt + self.output

    def prompts(self, seed: str, vocabulary: int) -> list[list[int]]:
        """Random token ids, the same for the same seed. The lowest ids are left out: they are special tokens."""
        draw = random.Random(seed)
        return [[draw.randrange(_FIRST_ID, vocabulary) for _ in range(self.prompt)] for _ in range(self.streams)]


_FIRST_ID = 300


def together(times: Times) -> float:
    """Tokens a second while all streams decode: from the moment the last has its first token to the first one's end."""
    begin = max(each[0] for each in times)
    end = min(each[-1] for each in times)
    tokens = sum(begin < at <= end for each in times for at in each)
    if not tokens:
        raise ValueError("the streams did not decode together: one ended before another began")
    return tokens / (end - begin)


def whole(times: Times) -> float:
    """Tokens a second of all streams, from the start to the last token of all."""
    return sum(len(each) for each in times) / max(each[-1] for each in times)


def first_ms(times: Times) -> float:
    """Milliseconds until the first token of a single prompt."""
    return 1e3 * times[0][0]


def prompt_rate(prompt: int) -> Callable[[Times], float]:
    """Prompt tokens a second, until each of the prompts has its first token."""

    def number(times: Times) -> float:
        return prompt * len(times) / max(each[0] for each in times)

    return number


def _decode(streams: int, output: int) -> Workload:
    name = f"decode, {streams} stream{'s' * (streams > 1)}"
    return Workload(name, "tok/s", True, streams=streams, output=output, number=together)


def _ttft(prompt: int) -> Workload:
    return Workload(f"first token of {prompt}", "ms", False, prompt=prompt, repeats=3, number=first_ms)


WORKLOADS = {
    "decode-1": _decode(1, 64),
    "bandwidth": Workload("share of read bandwidth, 1 stream", "%", True),
    "decode-8": _decode(8, 48),
    "decode-32": _decode(32, 32),
    "prefill-512": Workload("prefill, 2 x 512 tokens", "tok/s", True, streams=2, prompt=512, number=prompt_rate(512)),
    "ttft-128": _ttft(128),
    "ttft-512": _ttft(512),
    "serve-32": Workload(
        "32 requests of 128 in, 128 out", "tok/s", True, streams=32, output=128, number=whole, through_http=True
    ),
    "memory-32": Workload("peak memory, 32 streams", "MiB", False, streams=32, output=8),
    "start": Workload("start to first answer", "s", False),
}

MOST_STREAMS = max(workload.streams for workload in WORKLOADS.values())
LONGEST = max(workload.largest for workload in WORKLOADS.values())
