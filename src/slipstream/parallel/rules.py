"""Rules: from the role of an axis to the axes of the mesh that it lies on."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from slipstream.parallel.mesh import KV, TENSOR

Rules = Mapping[str, tuple[str, ...]]
"""Role -> axes of the mesh, first come first served: a mesh axis shards one axis of a weight.

A role that is not in a table is whole on every device. TOKENS is the role of activations' tokens between the products.
"""

TOKENS = "tokens"

TENSOR_PARALLEL: Rules = {
    "vocab": TENSOR,
    "heads": TENSOR,
    "kv_heads": (KV,),
    "mlp": TENSOR,
    "modulation": TENSOR,
    "inner": TENSOR,
}
EXPERT_PARALLEL: Rules = {"expert": TENSOR}
SEQUENCE_PARALLEL: Rules = {TOKENS: TENSOR}

PADDED = "vocab"
"""The role whose axis is filled up with zeros where it does not divide. What stands for them is cut off the logits."""

GATHERED = frozenset({PADDED, "modulation"})
"""Roles that products keep, whose results are wanted whole everywhere: logits, and a few numbers for all tokens."""


def rules_of(*, experts: bool = False, tokens: bool = False) -> Rules:
    """The rules of a placement: tensor parallel, and if asked for, experts and tokens on a device each."""
    return {**(EXPERT_PARALLEL if experts else {}), **TENSOR_PARALLEL, **(SEQUENCE_PARALLEL if tokens else {})}


def assigned(roles: Collection[str], rules: Rules) -> Mapping[str, tuple[str, ...]]:
    """The mesh axes of those roles of one weight that have any."""
    taken: dict[str, tuple[str, ...]] = {}
    for role, axes in rules.items():
        if role in roles and not any(set(axes) & set(used) for used in taken.values()):
            taken[role] = axes
    return taken
