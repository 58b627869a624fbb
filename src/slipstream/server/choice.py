"""Moved to slipstream.text.choice (founder): `LLM` uses it too. Import from there; edit it there."""

from slipstream.text.choice import Choice, Delta, Position

__all__ = ["Choice", "Delta", "Position"]
