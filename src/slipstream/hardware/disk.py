"""Where things are kept between runs: models, compiled steps, prepared tokenizers."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """SLIPSTREAM_CACHE, else XDG_CACHE_HOME/slipstream, else ~/.cache/slipstream. It may not exist yet."""
    own = os.environ.get("SLIPSTREAM_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "slipstream"
