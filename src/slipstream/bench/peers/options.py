"""The settings of a comparison. The command line's flags are these fields."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slipstream.bench.options import PLOT_FORMATS
from slipstream.bench.peers.participants import MODELS, PARTICIPANTS, PRECISIONS
from slipstream.bench.peers.workloads import WORKLOADS
from slipstream.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PeersOptions:
    """Settings of `slipstream bench peers`.

    Parameters
    ----------
    model
        Which of the built-in models: smollm2 (all peers), gemma3 (llama.cpp) or both.
    rounds
        How often everything is measured, in alternation. The medians are reported; five or more are worth quoting.
    peers
        Peers to compare with, with commas: openvino, llamacpp-q4_1, llamacpp-q4_0, llamacpp-q8_0, llamacpp-q4_k_m,
        llamacpp (all of its four), vllm, transformers. Empty: all. none: Slipstream alone.
    workloads
        What to measure, with commas: decode-1, decode-8, decode-32, prefill-512, ttft-128, ttft-512, serve-32,
        memory-32, start, bandwidth. Empty: all.
    precision
        Slipstream's --cpu-precision, with commas: each that is named takes part.
    threads
        Threads of every participant, and CPUs that it may use. None: all that this process may use.
    thorough
        Measure every peer in every round. Else one that in two rounds has not come to half of the best peer sits out
        the others of that workload.
    seed
        Seed of the prompts. Every round has prompts of its own.
    json
        JSON report to write. None: bench-peers-DATE-TIME.json in the current folder.
    plot
        Plot to write (.png, .svg or .pdf). None: next to the report, as .png.
    docs
        Markdown file that gets the tables and the plot, between its two markers `<!-- peers -->` and `<!-- /peers -->`.
    """

    model: Literal["smollm2", "gemma3", "both"] = "both"
    rounds: int = 5
    peers: str = ""
    workloads: str = ""
    precision: str = "exact,fast"
    threads: int | None = None
    thorough: bool = False
    seed: int = 0
    json: Path | None = None
    plot: Path | None = None
    docs: Path | None = None

    def __post_init__(self) -> None:
        """Refuse settings that cannot work. Raises ConfigError."""
        if self.rounds < 1:
            raise ConfigError(f"--rounds must be at least 1, got {self.rounds}")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"--threads must be at least 1, got {self.threads}")
        if self.plot is not None and self.plot.suffix not in PLOT_FORMATS:
            raise ConfigError(f"--plot must end in {', '.join(PLOT_FORMATS)}, got {self.plot}")
        if self.docs is not None and not self.docs.is_file():
            raise ConfigError(f"--docs takes a Markdown file that exists, got {self.docs}")
        if not self.precision_names:
            raise ConfigError(f"--precision takes {', '.join(PRECISIONS)}, got nothing")
        _ = self.peer_names, self.workload_names

    @property
    def model_names(self) -> tuple[str, ...]:
        """The models to compare on."""
        return tuple(MODELS) if self.model == "both" else (self.model,)

    @property
    def peer_names(self) -> tuple[str, ...]:
        """The peers to compare with. Raises ConfigError naming one that does not exist."""
        known = [participant.name for participant in PARTICIPANTS if participant.precision is None]
        if self.peers.strip() == "none":
            return ()
        families = {name.partition("-")[0] for name in known}
        asked = _listed(self.peers, "peers", (*known, *families))
        return tuple(name for name in known if not asked or name in asked or name.partition("-")[0] in asked)

    @property
    def workload_names(self) -> tuple[str, ...]:
        """What to measure. Raises ConfigError naming one that does not exist."""
        asked = _listed(self.workloads, "workloads", WORKLOADS)
        return tuple(name for name in WORKLOADS if not asked or name in asked)

    @property
    def precision_names(self) -> tuple[str, ...]:
        """Slipstream's precisions that take part. Raises ConfigError naming one that does not exist."""
        asked = _listed(self.precision, "precision", PRECISIONS)
        return tuple(name for name in PRECISIONS if name in asked)


def _listed(text: str, flag: str, known: Iterable[str]) -> tuple[str, ...]:
    """The names in `text`, which commas or spaces part."""
    names = tuple(name for name in re.split(r"[\s,]+", text.strip()) if name)
    choices = sorted(known)
    for name in names:
        if name not in choices:
            raise ConfigError(f"--{flag} has no {name!r}: there are {', '.join(choices)}")
    return names
