from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.engine.config import EngineConfig
from slipstream.engine.shapes import Shape, ShapePolicy
from slipstream.errors import ConfigError


def test_the_default_engine_has_seven() -> None:
    config = EngineConfig()
    shapes = ShapePolicy(config.max_seqs, config.max_batched_tokens, 128)
    assert shapes.decode == (Shape(1, 1), Shape(8, 8), Shape(32, 32))
    assert shapes.mixed == (Shape(32, 8), Shape(128, 32), Shape(256, 32), Shape(512, 32))
    assert shapes.all()[0] == Shape(512, 32)
    assert len(shapes.all()) == len(set(shapes.all())) == 7


@pytest.mark.parametrize(
    ("tokens", "rows", "decode_only", "expected"),
    [
        (1, 1, True, Shape(1, 1)),
        (2, 2, True, Shape(8, 8)),
        (8, 8, True, Shape(8, 8)),
        (9, 9, True, Shape(32, 32)),
        (7, 1, False, Shape(32, 8)),
        (1, 1, False, Shape(32, 8)),
        (20, 9, False, Shape(128, 32)),
        (33, 2, False, Shape(128, 32)),
        (129, 32, False, Shape(256, 32)),
        (512, 32, False, Shape(512, 32)),
    ],
)
def test_the_smallest_that_fits(tokens: int, rows: int, decode_only: bool, expected: Shape) -> None:
    assert ShapePolicy(32, 512, 128).shape_for(tokens, rows, decode_only) == expected


def test_large_and_tiny_engines() -> None:
    large = ShapePolicy(256, 2048, 256)
    assert [s.tokens for s in large.decode] == [1, 8, 32, 128, 256]
    assert large.mixed[-1] == Shape(2048, 256)
    assert len(large.all()) == 11
    assert ShapePolicy(1, 1, 1).all() == (Shape(2, 1), Shape(1, 1))
    assert ShapePolicy(4, 4, 1).all() == (Shape(5, 4), Shape(4, 4), Shape(1, 1))


@given(st.integers(1, 300), st.integers(0, 3000), st.data())
def test_every_step_within_the_limits_has_a_shape(max_seqs: int, more: int, data: st.DataObject) -> None:
    shapes = ShapePolicy(max_seqs, max_seqs + more, 8)
    rows = data.draw(st.integers(1, max_seqs))
    tokens = data.draw(st.integers(rows, max_seqs + more))
    mixed = shapes.shape_for(tokens, rows, decode_only=False)
    assert mixed in shapes.all() and not mixed.decode_only
    assert tokens <= mixed.tokens and rows <= mixed.rows < mixed.tokens
    decode = shapes.shape_for(rows, rows, decode_only=True)
    assert decode in shapes.all() and decode.decode_only and rows <= decode.rows
    assert rows <= 8 or decode.rows < 4 * rows
    assert len(set(shapes.all())) == len(shapes.all()) <= 18


def test_beyond_the_limits_is_an_error() -> None:
    shapes = ShapePolicy(4, 16, 1)
    with pytest.raises(ValueError, match="no shape holds 17 tokens in 2 rows"):
        shapes.shape_for(17, 2, decode_only=False)
    with pytest.raises(ValueError, match="no shape holds 5 tokens in 5 rows"):
        shapes.shape_for(5, 5, decode_only=True)
    for wrong in ((0, 8, 1), (4, 3, 1), (4, 8, 0)):
        with pytest.raises(ConfigError, match="no step fits"):
            ShapePolicy(*wrong)
