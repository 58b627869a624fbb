"""Record diffusers' tables and steps: python -m tests.golden.make_schedules

Writes tests/golden/models/schedules.npz: of every case of tests/diffusion/samplers.py the times, sigmas where it has
any, and x after the last step with the outputs and the noise of `drawn`. Made with diffusers 0.42.1, torch 2.13.0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.diffusion.samplers import CASES
from tests.parity.schedules import followed

FILE = Path(__file__).parent / "models" / "schedules.npz"


def main() -> None:
    """Write the file."""
    found: dict[str, np.ndarray] = {}
    for name, case in CASES.items():
        theirs = followed(name, case)
        found[f"{name}/times"] = theirs.times
        found[f"{name}/end"] = theirs.way[-1]
        if theirs.sigmas is not None:
            found[f"{name}/sigmas"] = theirs.sigmas
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
