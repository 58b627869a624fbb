"""Which pictures are decoded in tiles, and that the engine does."""

from __future__ import annotations

from typing import Any

import pytest

from slipstream.diffusion import tiling
from slipstream.diffusion.config import Tiling
from slipstream.kernels.ragged import Kernels
from tests.diffusion import fakes


@pytest.mark.parametrize(
    ("mode", "height", "width", "tile"),
    [
        ("auto", 1024, 1024, None),
        ("auto", 2048, 512, None),
        ("auto", 1024, 1032, 128),
        ("auto", 2048, 2048, 128),
        ("always", 512, 512, None),
        ("always", 512, 520, 64),
        ("never", 4096, 4096, None),
    ],
)
def test_which_pictures(mode: Tiling, height: int, width: int, tile: int | None) -> None:
    assert tiling.tile_for(mode, height, width, 8) == tile


def test_the_engine_asks_for_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the picture alone: previews, and what colours they have, come of something smaller."""
    asked = []
    decode = fakes.Fake.decode

    def watched(self: fakes.Fake, w: Any, latents: Any, kernels: Kernels, tile: int | None = None) -> Any:
        asked.append((latents.shape[1:3], tile))
        return decode(self, w, latents, kernels, tile)

    monkeypatch.setattr(fakes.Fake, "decode", watched)
    monkeypatch.setitem(tiling.SIDES, "always", 48)  # as large as what colours are fitted to
    engine = fakes.engine(fakes.EMBEDDED, tiling="always")
    engine.add(fakes.request("one", steps=6, width=56, height=24))
    engine.step()
    engine.step()
    assert engine.preview("one") is not None
    assert fakes.run(engine)["one"].picture is not None
    assert ((12, 28), 24) in asked
    assert {tile for shape, tile in asked if shape != (12, 28)} <= {None}
