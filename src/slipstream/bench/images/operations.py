"""Multiplications and additions of a model's step, as it is defined: products and convolutions, each in full."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import jax
import numpy as np

from slipstream.bench.images.drivers.slipstream import RUNS
from slipstream.bench.images.drivers.workloads import Workload
from slipstream.spec.param import map_params


def operations(work: Workload) -> int:
    """Two for each product of numbers in a step of the workload. Nothing is computed."""
    module, run = RUNS[work.kind]
    config = module.Config.from_diffusers(work.config)
    weights = map_params(lambda param: jax.ShapeDtypeStruct(param.shape, np.float32), module.plan(config))
    return counted(jax.make_jaxpr(lambda w, x: run(w, config, x, "reference"))(weights, dict(work.inputs)).jaxpr)


def counted(jaxpr: Any) -> int:
    """Of a traced function, what it calls included; a loop's body as often as it runs."""
    return sum(_of(equation) for equation in jaxpr.eqns)


def _of(equation: Any) -> int:
    name = equation.primitive.name
    if name in ("dot_general", "conv_general_dilated"):
        results: int = prod(equation.outvars[0].aval.shape)
        return 2 * results * _summed(equation)
    times: int = equation.params["length"] if name == "scan" else 1
    return times * sum(counted(inner) for inner in _inside(equation))


def _summed(equation: Any) -> int:
    """How many products of numbers are in each of a result."""
    if equation.primitive.name == "dot_general":
        (summed, _), _ = equation.params["dimension_numbers"]
        given = equation.invars[0].aval.shape
        return prod(given[axis] for axis in summed)
    outputs = equation.params["dimension_numbers"].rhs_spec[0]
    weight = equation.invars[1].aval.shape
    return prod(size for axis, size in enumerate(weight) if axis != outputs)


def _inside(equation: Any) -> Iterator[Any]:
    """What an equation calls."""
    for value in equation.params.values():
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            yield inner
