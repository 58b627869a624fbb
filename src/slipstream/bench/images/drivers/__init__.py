"""What runs in each participant's own process. All but `slipstream.py` does without Slipstream's package."""
