"""diffusers on PyTorch, float32, as it is."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from .torch_model import Called, as_ours, tensors
from .workloads import workload


def load(settings: dict[str, Any]) -> tuple[Callable[[], np.ndarray], dict[str, str]]:
    """The step, and versions."""
    torch.set_num_threads(settings["threads"])
    work = workload(settings["workload"], settings["size"], settings["narrow"])
    model, inputs = Called(work), tensors(work)

    def step() -> np.ndarray:
        with torch.inference_mode():
            return as_ours(model(*inputs).numpy())

    return step, {name: version(name) for name in ("diffusers", "torch")}
