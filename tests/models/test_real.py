"""The built-in models against numbers recorded from transformers in float32 (tests/golden/make_models.py)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from slipstream.checkpoint import resolve
from slipstream.kernels.native import library
from slipstream.kernels.ragged import Kernels
from tests.models.harness import Model

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "models" / "real.json").read_text())


TOLERANCE: dict[Kernels, float] = {"reference": 1e-4, "cpu": 1e-3}
"""Of logits, over the largest. The native kernels round activations to 16 bits."""


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("kernels", TOLERANCE if library.reason() is None else ["reference"])
def test_top_logits_and_greedy_tokens(name: str, kernels: Kernels) -> None:
    """One forward over all prompts and their 64 greedy tokens: each token must be the argmax of those before it.

    Prefilling what was decoded is the same as decoding it, which test_forward holds for every variant.
    """
    model = Model.open(resolve(name), kernels)
    records = GOLDEN[name]
    rows = [record["prompt"] + record["greedy"][:-1] for record in records]
    session = model.session([len(row) for row in rows], sum(len(row) for row in rows))
    for record, logits in zip(records, session.step(*rows), strict=True):
        for position, ids, values in zip(record["positions"], record["top_ids"], record["top_logits"], strict=True):
            row, tolerance = logits[position], TOLERANCE[kernels] * max(abs(value) for value in values)
            np.testing.assert_allclose(row[ids], values, rtol=0, atol=tolerance)
            np.testing.assert_allclose(np.sort(row)[::-1][: len(values)], values, rtol=0, atol=tolerance)
        assert logits[len(record["prompt"]) - 1 :].argmax(-1).tolist() == record["greedy"]
