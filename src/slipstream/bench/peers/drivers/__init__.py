"""Programs that run a participant each, in an environment of its own, and answer commands on standard input.

They import nothing of Slipstream but `slipstream.py`, which runs in ours: `start.py` loads this folder as a package of
its own. `protocol.py` says what they are told and what they answer.
"""
