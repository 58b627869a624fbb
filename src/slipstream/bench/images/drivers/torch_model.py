"""diffusers' model of a workload, with its weights, and its inputs as PyTorch takes them."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch

from .workloads import Workload, weight


class Called(torch.nn.Module):  # type: ignore[misc]
    """A denoiser whose inputs are all positional tensors and whose output is one."""

    def __init__(self, work: Workload) -> None:
        super().__init__()
        self.kind = work.kind
        # No memory is filled twice: weights are made without numbers, then given theirs.
        with torch.device("meta"):
            model = getattr(diffusers, work.kind)(**work.config)
        state = {name: torch.from_numpy(weight(name, tuple(x.shape))) for name, x in model.state_dict().items()}
        model.load_state_dict(state, strict=True, assign=True)
        self.model = model.eval()

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """In the order of the workload's inputs."""
        if self.kind == "UNet2DConditionModel":
            sample, time, text, pooled, sizes = inputs
            added = {"text_embeds": pooled, "time_ids": sizes}
            return self._first(sample, time, text, added_cond_kwargs=added)
        latents, text, pooled, time, guidance, text_ids, image_ids = inputs
        ids = {"img_ids": image_ids, "txt_ids": text_ids}
        return self._first(latents, text, pooled, time, guidance=guidance, **ids)

    def _first(self, *given: torch.Tensor, **named: Any) -> torch.Tensor:
        found: tuple[torch.Tensor, ...] = self.model(*given, **named, return_dict=False)
        return found[0]


def tensors(work: Workload) -> list[torch.Tensor]:
    """The inputs, pictures with channels first."""
    return [torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1) if x.ndim == 4 else x))
            for x in work.inputs.values()]  # fmt: skip


def as_ours(found: Any) -> np.ndarray:
    """An output with channels last."""
    found = np.asarray(found)
    return np.moveaxis(found, 1, -1) if found.ndim == 4 else found
