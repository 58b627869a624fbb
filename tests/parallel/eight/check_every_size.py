"""Every family on 2, 4 and 8 devices. It compiles for a minute, so scripts/parity runs it."""

from __future__ import annotations

import pytest

from slipstream.models.registry import FAMILIES
from tests.parallel.eight.check_families import alone, compare, config_of, greedy
from tests.parallel.eight.on_mesh import OnMesh


@pytest.mark.parametrize("tp", [2, 4, 8])
@pytest.mark.parametrize("name", [row.name for row in FAMILIES])
def test_logits_and_greedy_tokens_are_those_of_one_device(name: str, tp: int) -> None:
    compare(greedy(OnMesh.of(config_of(name), tp)), alone(name))
