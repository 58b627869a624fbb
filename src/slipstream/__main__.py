"""`python -m slipstream` is the `slipstream` command."""

from __future__ import annotations

from slipstream.cli.main import main

if __name__ == "__main__":
    main()
