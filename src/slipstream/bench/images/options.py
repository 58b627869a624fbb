"""The settings of `slipstream bench images`. The command line's flags are these fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slipstream.errors import ConfigError

WORKLOADS = ("unet", "flux")
PARTICIPANTS = ("exact", "fast", "xla", "diffusers", "openvino")


@dataclass(frozen=True, kw_only=True)
class ImagesOptions:
    """Settings of `slipstream bench images`.

    Parameters
    ----------
    workloads
        What to measure, with commas. unet: a step of Stable Diffusion XL's UNet with guidance, a batch of two. flux: 2
        double and 4 single blocks of Flux.1's width.
    participants
        Who takes part, with commas: exact (Slipstream, float32), fast (its products with weights of int8), xla
        (without its native kernels), diffusers (on PyTorch, float32), openvino (float32).
    size
        The picture's side.
    rounds
        How often everything is measured, in alternation, each time in a new process. The medians are reported.
    steps
        Steps in each of these processes, after a first one that is not counted.
    threads
        Threads of every participant, and CPUs that it may use. None: all that this process may use.
    narrow
        Models of a hundredth of the width, to try the command.
    json
        JSON report to write.
    """

    workloads: str = "unet,flux"
    participants: str = "exact,fast,diffusers,openvino"
    size: int = 512
    rounds: int = 3
    steps: int = 2
    threads: int | None = None
    narrow: bool = False
    json: Path | None = None

    def __post_init__(self) -> None:
        """Refuse settings that cannot work. Raises ConfigError."""
        for name in ("rounds", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.size < 64 or self.size % 64:
            raise ConfigError(f"--size must be a multiple of 64, got {self.size}")
        for flag, chosen, known in (
            ("workloads", self.chosen_workloads, WORKLOADS),
            ("participants", self.chosen_participants, PARTICIPANTS),
        ):
            strange = [name for name in chosen if name not in known]
            if strange or not chosen:
                raise ConfigError(f"--{flag} takes {', '.join(known)}, with commas; got {', '.join(strange) or 'none'}")

    @property
    def chosen_workloads(self) -> tuple[str, ...]:
        """`workloads`, read."""
        return tuple(self.workloads.split(",")) if self.workloads else ()

    @property
    def chosen_participants(self) -> tuple[str, ...]:
        """`participants`, read."""
        return tuple(self.participants.split(",")) if self.participants else ()
