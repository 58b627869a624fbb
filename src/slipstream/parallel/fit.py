"""Whether a model's sizes divide among devices, said before anything is read; and what of them does."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

from slipstream.errors import ConfigError
from slipstream.parallel.mesh import TENSOR, split
from slipstream.parallel.rules import PADDED, Rules, assigned
from slipstream.spec.param import Param, params

_MOST_DEVICES = 256  # of the numbers that an error lists

LEAST_CUT = 0.5
"""The share of a model that must be cut where parts may stay whole: with less, more devices are a waste."""


def check_fit(plan: Any, kv_heads: int, tp: int, rules: Rules) -> None:
    """Raises ConfigError unless all sizes of a plan divide among `tp` devices; it names them, and what would work."""
    wrong = misfits([param for _, param in params(plan)], kv_heads, tp, rules)
    if not wrong:
        return
    leaves = [param for _, param in params(plan)]
    fitting = [str(n) for n in range(1, _MOST_DEVICES + 1) if not misfits(leaves, kv_heads, n, rules)]
    raise ConfigError(f"--tp {tp} does not fit this model: {'; '.join(wrong)}. --tp may be {', '.join(fitting)}")


def check_share(plan: Any, tp: int, rules: Rules) -> None:
    """Raises ConfigError unless most of a plan's numbers are cut among `tp` devices by `fitting`; it names what is not.

    For models of many parts, of which some may stay whole on each device.
    """
    leaves = [param for _, param in params(plan)]
    if tp == 1 or cut_share(leaves, tp, rules) > LEAST_CUT:
        return
    wrong = "; ".join(misfits(leaves, tp, tp, rules)) or "no axis of its weights is cut"
    works = [str(n) for n in range(2, _MOST_DEVICES + 1) if cut_share(leaves, n, rules) > LEAST_CUT]
    raise ConfigError(f"--tp {tp} would cut too little of this model: {wrong}. --tp may be {', '.join(['1', *works])}")


def cut_share(leaves: Iterable[Param], tp: int, rules: Rules) -> float:
    """The share of numbers that `tp` devices have parts of, where the others are whole on each."""
    leaves = list(leaves)
    cut = sum(param.size for param in leaves if assigned([axis.role for axis in param.axes], fitting(param, tp, rules)))
    return cut / max(1, sum(param.size for param in leaves))


def fitting(param: Param, tp: int, rules: Rules) -> Rules:
    """The rules without those for axes of the parameter that `tp` devices do not divide: such an axis stays whole.

    For meshes whose first axis has all devices (`make_mesh` with as many heads as devices).
    """
    sizes = {axis.role: axis.size for axis in param.axes}
    return {role: axes for role, axes in rules.items() if role == PADDED or sizes.get(role, 0) % tp == 0}


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
