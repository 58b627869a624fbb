"""What fits how many devices, and what a rule gives which axis."""

from __future__ import annotations

import pytest

from slipstream.errors import ConfigError
from slipstream.models.registry import family
from slipstream.parallel.fit import check_fit, misfits
from slipstream.parallel.mesh import GROUP, KV, TENSOR, split
from slipstream.parallel.rules import TENSOR_PARALLEL, assigned, rules_of
from slipstream.spec.param import params
from tests.models.moe_variants import MOE
from tests.models.variants import VARIANTS


@pytest.mark.parametrize(
    ("tp", "kv_heads", "sizes"),
    [(1, 8, (1, 1)), (4, 8, (4, 1)), (8, 8, (8, 1)), (8, 2, (2, 4)), (4, 1, (1, 4)), (3, 2, None), (6, 4, None)],
)
def test_heads_are_cut_or_repeated(tp: int, kv_heads: int, sizes: tuple[int, int] | None) -> None:
    assert split(tp, kv_heads) == sizes


def test_a_mesh_axis_cuts_one_axis_of_a_weight() -> None:
    roles = ["expert", "embed", "mlp"]
    assert assigned(roles, TENSOR_PARALLEL) == {"mlp": TENSOR}
    assert assigned(roles, rules_of(experts=True)) == {"expert": TENSOR}
    assert assigned(["embed", "kv_heads", "head"], TENSOR_PARALLEL) == {"kv_heads": (KV,)}
    assert GROUP not in TENSOR_PARALLEL["kv_heads"]


def test_an_error_names_every_size_and_what_would_fit() -> None:
    config = VARIANTS["llama-odd-sizes"]  # 3 heads, 35 hidden
    chosen = family(config)
    c = chosen.from_hf(config)
    with pytest.raises(ConfigError) as caught:
        check_fit(chosen.plan(c), 3, 3, TENSOR_PARALLEL)
    assert str(caught.value) == (
        "--tp 3 does not fit this model: mlp has size 35, which 3 does not divide. --tp may be 1"
    )


def test_experts_are_counted_whole_or_by_their_hidden_size() -> None:
    config = MOE["mixtral"]  # 6 experts of 40
    chosen = family(config)
    c = chosen.from_hf(config)
    leaves = [param for _, param in params(chosen.plan(c))]
    assert misfits(leaves, c.kv_heads, 4, rules_of()) == []
    assert misfits(leaves, c.kv_heads, 4, rules_of(experts=True)) == ["expert has size 6, which 4 does not divide"]
