"""Text encoders of image models against transformers, in float32, from the same random tiny weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from slipstream.kernels.ragged import Kernels
from slipstream.models.image import t5
from tests.models.image.harness import Built, clip_tokens, relative, tokens_of
from tests.models.image.variants import CLIPS, T5S
from tests.parity import images as reference

TOLERANCE = 1e-4


@pytest.mark.parametrize("name", CLIPS)
def test_clip(name: str) -> None:
    """Texts of unequal lengths: the states of all layers but the last, of the last, and of the texts' ends."""
    tokens = clip_tokens(CLIPS[name])
    expected = reference.clip(reference.model_of(name), tokens)
    found = Built.random(name)(tokens)._asdict()
    assert found.keys() == expected.keys()
    for key in expected:
        assert relative(found[key], expected[key]) < TOLERANCE


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
@pytest.mark.parametrize("name", T5S)
def test_t5(name: str, kernels: Kernels) -> None:
    """More tokens than the distance that has the last bucket, and enough for heads in turns."""
    tokens = tokens_of(T5S[name], 300)
    expected = reference.t5(reference.model_of(name), tokens)
    assert relative(Built.random(name)(tokens, kernels=kernels), expected) < TOLERANCE


@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (8, 20), (16, 300), (6, 7)])
def test_distances_of_t5(buckets: int, furthest: int) -> None:
    distances = np.arange(-700, 701)
    config = {**T5S["t5"], "relative_attention_num_buckets": buckets, "relative_attention_max_distance": furthest}
    found = t5.buckets_of(t5.Config.from_diffusers(config), distances)
    expected = T5Attention._relative_position_bucket(
        torch.from_numpy(distances), num_buckets=buckets, max_distance=furthest
    )
    np.testing.assert_array_equal(found, expected.numpy())
