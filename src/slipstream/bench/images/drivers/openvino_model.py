"""OpenVINO, float32: the model as its converter makes it of diffusers', kept in a file since that takes minutes."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch

from .torch_model import Called, as_ours, tensors
from .workloads import workload


def load(settings: dict[str, Any]) -> tuple[Callable[[], np.ndarray], dict[str, str]]:
    """The step, and versions. With `convert` in the settings the file is made if need be, and the step does nothing."""
    work = workload(settings["workload"], settings["size"], settings["narrow"])
    versions = {name: version(name) for name in ("openvino", "diffusers", "torch")}
    inputs = tensors(work)
    path = Path(settings["model"])
    if settings["convert"]:
        if not path.exists():
            with torch.inference_mode():
                model = openvino.convert_model(Called(work), example_input=inputs)
            path.parent.mkdir(parents=True, exist_ok=True)
            # Under another name first: a file that is there is whole.
            openvino.save_model(model, path.with_stem("part"), compress_to_fp16=False)
            path.with_name("part.bin").rename(path.with_suffix(".bin"))
            path.with_name("part.xml").rename(path)
        return (lambda: np.zeros(0, np.float32)), versions
    core = openvino.Core()
    precise = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": settings["threads"]}
    compiled = core.compile_model(core.read_model(path), "CPU", precise)
    arrays = [x.numpy() for x in inputs]
    return (lambda: as_ours(compiled(arrays)[0])), versions
