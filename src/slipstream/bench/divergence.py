"""How far the native CPU kernels' predictions are from those of float32, token by token.

Both read the same text ("teacher forcing") with the same weights. The reference dequantizes them and computes in
float32 with XLA's own code; a mode computes as the engine would, from the blocks as they are stored. The text is run
as the engine runs prompts: packed into steps of a fixed number of tokens, with a paged KV cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from slipstream.checkpoint.loading import load
from slipstream.checkpoint.placement import Placement
from slipstream.checkpoint.progress import Progress, silent
from slipstream.engine.memory import KVShape
from slipstream.engine.memory import kv_dtype as cache_type
from slipstream.errors import ConfigError
from slipstream.kernels.native import library
from slipstream.kernels.packed import Precision
from slipstream.kernels.ragged import Kernels, Step
from slipstream.models.registry import Family, family
from slipstream.spec.source import Checkpoint, Source

PAGE = 16
BLOCK = 64  # positions whose logits are live at once


@dataclass(frozen=True)
class Mode:
    """A way to run the native kernels. `kv_dtype`: of the KV cache, auto for the engine's choice."""

    precision: Precision
    kv_dtype: str = "auto"


@dataclass(frozen=True)
class Divergence:
    """Numbers of n positions, each predicting the token that follows it in its text.

    `kl` f64[n]: KL(reference || mode) in nats. `agrees` bool[n]: both find the same token likeliest. `loss`,
    `reference_loss` f64[n]: minus the log probability of the token that follows.
    """

    kl: np.ndarray
    agrees: np.ndarray
    loss: np.ndarray
    reference_loss: np.ndarray

    def __getitem__(self, where: slice | np.ndarray) -> Divergence:
        return Divergence(self.kl[where], self.agrees[where], self.loss[where], self.reference_loss[where])


def measure(
    checkpoint: Checkpoint,
    texts: Sequence[Sequence[int]],
    modes: Sequence[Mode],
    *,
    step_tokens: int = 512,
    progress: Progress = silent,
) -> list[Divergence]:
    """The divergence of each mode, the texts' positions one after the other; the last of a text predicts nothing.

    Raises ConfigError where there is no CPU or the native kernels are not there; CheckpointError.
    """
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        raise ConfigError(f"accuracy is measured on a CPU, this is a {device.platform}: set JAX_PLATFORMS=cpu")
    if missing := library.reason():
        raise ConfigError(missing)
    model = _Model(checkpoint, texts, step_tokens, device, progress)
    reference = model.pass_over(model.weights(native=False), "reference", "float32")
    weights = {precision: model.weights(native=True, precision=precision) for precision in {m.precision for m in modes}}
    passes = [model.pass_over(weights[mode.precision], "cpu", mode.kv_dtype) for mode in modes]
    return _divergences(model, reference, passes, progress)


def measure_copy(
    original: Checkpoint,
    copy: Checkpoint,
    texts: Sequence[Sequence[int]],
    *,
    step_tokens: int = 512,
    progress: Progress = silent,
) -> Divergence:
    """The divergence of a checkpoint whose weights were rounded from the one that they were rounded from.

    Both are computed in float32 by XLA's own code; where the copy asks to round inputs too, so it is done. Raises
    CheckpointError.
    """
    device = jax.local_devices()[0]
    model = _Model(original, texts, step_tokens, device, progress)
    reference = model.pass_over(model.weights(native=False), "reference", "float32")
    rounded = model.weights(native=False, copy=copy.source)
    return _divergences(model, reference, [model.pass_over(rounded, "reference", "float32")], progress)[0]


def _divergences(model: _Model, reference: _Pass, passes: Sequence[_Pass], progress: Progress) -> list[Divergence]:
    """The divergence of each pass over the texts from the reference."""
    compare = jax.jit(partial(_compare, model.family, model.config))
    following, steps = model.following(), -(-model.count // model.width)
    found: list[list[list[np.ndarray]]] = [[] for _ in passes]
    progress("compare", 0, steps)
    for i in range(steps):
        x = reference(i)
        xs = [one(i) for one in passes]
        results = compare(reference.weights, [one.weights for one in passes], x, xs, following[i])
        for one_pass, numbers in zip(found, results, strict=True):
            one_pass.append([np.asarray(n) for n in numbers])
        progress("compare", i + 1, steps)
    scored = following.reshape(-1) >= 0
    return [_joined(steps)[scored] for steps in found]


def _joined(steps: Sequence[Sequence[np.ndarray]]) -> Divergence:
    kl, agrees, loss, reference_loss = (np.concatenate(parts) for parts in zip(*steps, strict=True))
    return Divergence(kl.astype(np.float64), agrees, loss.astype(np.float64), reference_loss.astype(np.float64))


class _Model:
    """A checkpoint's family, and the texts packed one after the other and cut into steps."""

    def __init__(
        self, checkpoint: Checkpoint, texts: Sequence[Sequence[int]], width: int, device: jax.Device, progress: Progress
    ) -> None:
        self.family: Family = family(checkpoint.config)
        self.config = self.family.from_hf(checkpoint.config)
        self.source = checkpoint.source
        self.device, self.progress = device, progress
        self.texts, self.width = texts, width
        self.ends = np.cumsum([0, *map(len, texts)])
        self.count = int(self.ends[-1])

    def weights(self, *, native: bool, precision: Precision = "exact", copy: Source | None = None) -> Any:
        """All weights: blocks for the native kernels, or float32; or those of a `copy`, as it stores them."""
        placement = Placement(self.device, np.dtype(np.float32), native, precision)
        return load(
            self.family.plan(self.config),
            copy or self.source,
            placement.place,
            place_blocks=placement.place_blocks if native or copy else lambda param, stored: None,
            progress=self.progress,
            allowed_unused=self.family.unread,
        )

    def _cut(self, stream: Sequence[int], padding: int) -> np.ndarray:
        """A value for each token of the texts as i32[steps, width]."""
        padded = np.full(-(-self.count // self.width) * self.width, padding, np.int32)
        padded[: self.count] = stream
        return padded.reshape(-1, self.width)

    def following(self) -> np.ndarray:
        """i32[steps, width]: the token after each one; -1 where its text ends, and in padding."""
        return self._cut([token for text in self.texts for token in (*text[1:], -1)], -1)

    def pass_over(self, weights: Any, kernels: Kernels, kv_dtype: str) -> _Pass:
        """The texts' forward with an empty cache."""
        return _Pass(self, weights, kernels, kv_dtype)

    def steps(self, kernels: Kernels) -> list[tuple[np.ndarray, Step]]:
        """Tokens and description of each step; a text is a row of every step, empty where it has no tokens in it."""
        tokens = self._cut([token for text in self.texts for token in text], 0)
        each = [-(-len(text) // PAGE) for text in self.texts]
        pages = np.zeros((len(each), max(each)), np.int32)
        for row, (count, end) in enumerate(zip(each, np.cumsum(each), strict=True)):
            pages[row, :count] = np.arange(end - count, end)
        found = []
        for i, ids in enumerate(tokens):
            bounds = (i * self.width, (i + 1) * self.width)
            before, after = (np.clip(at - self.ends[:-1], 0, np.diff(self.ends)) for at in bounds)
            description = (np.cumsum([0, *(after - before)]), np.where(after > before, after, 0), pages)
            starts, lengths, table = (jnp.asarray(a, jnp.int32) for a in description)
            found.append((ids, Step.of(starts, lengths, table, self.width, kernels=kernels)))
        return found


class _Pass:
    """One way to run the model over the texts: call it with 0, 1, 2, ... for the final states of each step."""

    def __init__(self, model: _Model, weights: Any, kernels: Kernels, kv_dtype: str) -> None:
        c = model.config
        dtype = cache_type(kv_dtype, np.dtype(np.float32), model.device.platform)
        pages = sum(-(-len(text) // PAGE) for text in model.texts)
        self.weights = weights
        self._steps = model.steps(kernels)
        kv = KVShape(c.layers, c.kv_heads, c.head_dim, PAGE, dtype, values=not model.family.latent)
        self._cache = jax.jit(lambda: kv.cache(pages, kernels))()
        self._forward: Callable[..., Any] = jax.jit(
            lambda w, ids, step, cache: model.family.forward(w, c, ids, step, cache), donate_argnums=3
        )

    def __call__(self, i: int) -> Array:
        ids, step = self._steps[i]
        x: Array
        x, self._cache = self._forward(self.weights, ids, step, self._cache)
        return x


def _compare(
    family: Family, c: Any, w: Any, mode_ws: Sequence[Any], x: Array, mode_xs: Sequence[Array], following: Array
) -> list[tuple[Array, Array, Array, Array]]:
    """For each mode `Divergence`'s numbers of every position; `following` i32[t]. Meaningless where it is -1."""

    def block(rows: tuple[Array, list[Array], Array]) -> list[tuple[Array, Array, Array, Array]]:
        x, mode_xs, following = rows
        target = jnp.maximum(following, 0)[:, None]
        p = jax.nn.log_softmax(family.unembed(w, c, x))
        reference_loss = -jnp.take_along_axis(p, target, axis=1)[:, 0]
        found = []
        for mode_w, mode_x in zip(mode_ws, mode_xs, strict=True):
            q = jax.nn.log_softmax(family.unembed(mode_w, c, mode_x))
            # sum of q - p is 0, so this is sum of p (log p - log q), without the rounding errors of terms that cancel
            kl = jnp.sum(jnp.exp(p) * (jnp.expm1(q - p) - (q - p)), axis=1)
            agrees = jnp.argmax(p, axis=1) == jnp.argmax(q, axis=1)
            found.append((kl, agrees, -jnp.take_along_axis(q, target, axis=1)[:, 0], reference_loss))
        return found

    size = min(BLOCK, x.shape[0])
    whole = -(-x.shape[0] // size) * size
    blocks = jax.tree.map(
        lambda a: jnp.pad(a, ((0, whole - a.shape[0]), *((0, 0),) * (a.ndim - 1))).reshape(-1, size, *a.shape[1:]),
        (x, list(mode_xs), following),
    )
    found = jax.lax.map(block, blocks)
    result: list[tuple[Array, Array, Array, Array]] = jax.tree.map(lambda a: a.reshape(whole)[: x.shape[0]], found)
    return result
