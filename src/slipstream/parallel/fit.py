"""Whether a model's sizes divide among devices, said before anything is read."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

from slipstream.errors import ConfigError
from slipstream.parallel.mesh import TENSOR, split
from slipstream.parallel.rules import PADDED, Rules, assigned
from slipstream.spec.param import Param, params

_MOST_DEVICES = 256  # of the numbers that an error lists


def check_fit(plan: Any, kv_heads: int, tp: int, rules: Rules) -> None:
    """Raises ConfigError unless all sizes of a plan divide among `tp` devices; it names them, and what would work."""
    wrong = misfits([param for _, param in params(plan)], kv_heads, tp, rules)
    if not wrong:
        return
    leaves = [param for _, param in params(plan)]
    fitting = [str(n) for n in range(1, _MOST_DEVICES + 1) if not misfits(leaves, kv_heads, n, rules)]
    raise ConfigError(f"--tp {tp} does not fit this model: {'; '.join(wrong)}. --tp may be {', '.join(fitting)}")


def misfits(leaves: Iterable[Param], kv_heads: int, tp: int, rules: Rules) -> list[str]:
    """What does not divide among `tp` devices."""
    sizes = split(tp, kv_heads)
    if sizes is None:
        return [f"of {kv_heads} key/value heads and {tp} devices neither is a multiple of the other"]
    ways = dict(zip(TENSOR, sizes, strict=True))
    found: dict[str, None] = {}
    for param in leaves:
        axes = {axis.role: axis.size for axis in param.axes}
        for role, names in assigned(axes, rules).items():
            count = prod(ways[name] for name in names)
            if role != PADDED and axes[role] % count:
                found[f"{role} has size {axes[role]}, which {count} does not divide"] = None
    return list(found)
