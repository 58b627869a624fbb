"""`slipstream bench peers`: Slipstream beside other engines on this machine's CPU, all in one run."""
