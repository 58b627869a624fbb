"""What guessed steps cost a model in quality, and save in passes: the same pictures with and without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from slipstream.diffusion.engine import Finished, PictureEngine
from slipstream.diffusion.request import PictureRequest
from slipstream.diffusion.reuse import Quality, Reuse, quality

Way = Reuse | float
"""Of saving passes."""


def report(engine: PictureEngine, requests: Sequence[PictureRequest], ways: Sequence[Way]) -> Mapping[Way, Quality]:
    """Make all pictures in full, then in each of the `ways`, and compare. The requests must have seeds.

    A way is what to guess, or a limit of first-block caching, for which the engine must have been made. The engine must
    have no other work.
    """
    full = _made(engine, [replace(one, reuse=None, first_block=0.0) for one in requests])
    found: dict[Way, Quality] = {}
    for way in ways:
        reuse, limit = (way, 0.0) if isinstance(way, Reuse) else (None, way)
        made = _made(engine, [replace(one, reuse=reuse, first_block=limit) for one in requests])
        passes, full_passes = (sum(one.passes for one in side) for side in (made, full))
        found[way] = quality(_pictures(full), _pictures(made), passes, full_passes)
    return found


def _made(engine: PictureEngine, requests: Sequence[PictureRequest]) -> list[Finished]:
    for request in requests:
        if request.seed is None:
            raise ValueError("pictures without a seed cannot be compared")
        engine.add(request)
    found: dict[str, Finished] = {}
    while engine.has_work:
        found |= {one.id: one for one in engine.step() if isinstance(one, Finished)}
    return [found[request.id] for request in requests]


def _pictures(made: Sequence[Finished]) -> np.ndarray:
    """float32 [n, H, W, 3]."""
    return np.stack([one.picture for one in made if one.picture is not None])
