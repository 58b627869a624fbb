"""Load a 2 GB checkpoint onto four devices of a CPU, and print what the host held besides them: a program of its own.

What a device of a CPU holds is the host's memory too, so it is taken off. For each leaf: the kernel's own high water
mark of the process (VmHWM, reset before through /proc/self/clear_refs, so no peak is missed), less what was resident
before and less the bytes of the leaf on all devices. Pages of the mapped file count as held.
"""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from slipstream.checkpoint import load
from slipstream.checkpoint.placement import Placement
from slipstream.checkpoint.safetensors_source import open_folder
from slipstream.models.registry import family
from slipstream.parallel.mesh import make_mesh
from slipstream.parallel.rules import TENSOR_PARALLEL
from slipstream.spec.param import Param, params

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64_003, "hidden_size": 4096,
    "intermediate_size": 16_384, "num_hidden_layers": 2, "num_attention_heads": 32, "num_key_value_heads": 2,
    "head_dim": 128, "hidden_act": "silu", "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}  # fmt: skip
MARK = 7.0
"""What the last number of every tensor is; the others are zeros that a sparse file has without a byte on disk."""


def write(folder: Path, plan: Any) -> int:
    """A checkpoint of zeros but for MARK, in bfloat16; returns the size of its largest tensor."""
    shapes = {name: param.stored_shape for _, param in params(plan) for name in param.names}
    header, at = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at := at + 2 * prod(shape)]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        file.truncate(start + at)
        for entry in header.values():
            file.seek(start + entry["data_offsets"][1] - 2)
            file.write(np.array(MARK, ml_dtypes.bfloat16).tobytes())
    return max(2 * prod(shape) for shape in shapes.values())


def resident(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main(folder: Path) -> None:
    chosen = family(CONFIG)
    c = chosen.from_hf(CONFIG)
    plan = chosen.plan(c)
    largest = write(folder, plan)
    mesh = make_mesh(jax.devices()[:4], c.kv_heads)
    place = Placement(jax.devices()[0], np.dtype(ml_dtypes.bfloat16), False, "exact", mesh, TENSOR_PARALLEL)
    held: dict[str, float] = {}
    total = 0

    def measured(param: Param, tensors: Iterable[np.ndarray]) -> Any:
        nonlocal total
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        leaf = jax.block_until_ready(place.place_parts(param, tensors))
        array = jax.tree.leaves(leaf)[0]
        size = sum(shard.data.nbytes for shard in array.addressable_shards)
        held[param.names[0]] = (resident("VmHWM") - before - size) / largest
        total += size
        corner = np.asarray(array[tuple(n - 1 for n in (*array.shape[:1], *param.shape[1:]))], np.float32)
        assert corner == MARK or "vocab" in [axis.role for axis in param.axes], (param.names[0], corner)
        return leaf

    load(plan, open_folder(folder), place.place, place_parts=measured)
    print(json.dumps({"held": held, "largest": largest, "bytes": total}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
