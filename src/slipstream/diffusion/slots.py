"""What a pool keeps on the device, and the functions that change it. Every shape is fixed when it is made.

`programs` compiles them.

r rows of the pool, of which b take part in a step. A row is a place for one picture, and for one pass of the model: a
picture with true guidance has a second row, of which only the text is read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from slipstream.diffusion.pipeline import Family, Kept, Text
from slipstream.diffusion.reuse import Guess
from slipstream.diffusion.schedule import Row
from slipstream.kernels.low_rank import bound
from slipstream.kernels.ragged import Kernels

At = TypeVar("At", int, Array)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """All rows. float32 [r, h, w, c]: `x`, `denoised` (what the model saw in it last), `last` and `before` (the model's
    last outputs, guided), `noise` (the picture's own, of its start), `fresh` (a step's own), `picture` (the known one).
    `mask` [r, h, w, 1] is 1 where it is to be repainted. `extra` [r, h, w, e] and `sizes` [r, k] as the family takes
    them.
    """

    x: Array
    denoised: Array
    last: Array
    before: Array
    noise: Array
    fresh: Array
    picture: Array
    mask: Array
    extra: Array
    text: Text
    sizes: Array


class Numbers(NamedTuple):
    """The numbers of one row in one step: a schedule's, the guidances, what to guess from, how much of each adapter."""

    row: Row
    guidance: float
    embedded: float
    guess: Guess
    loras: tuple[float, ...] = ()

    def flat(self) -> tuple[float, ...]:
        """In the order of `_columns`."""
        return (*self.row, self.guidance, self.embedded, *self.guess, *self.loras)


NUMBERS = len(Row._fields) + 2 + len(Guess._fields)
"""Of a row, without those of adapters."""


class Places(NamedTuple, Generic[At]):
    """Where one row of a step reads and writes. `row`: of its text. `image`: of its latents. `other`: which row of the
    step has the pass without the prompt; itself where there is none. `write`: row to write, past the end for none. A
    row past the end is padding: what is computed for it goes nowhere.
    """

    row: At
    image: At
    other: At
    write: At


class _Columns(NamedTuple):
    """`Numbers` of b rows, each [b, 1, 1, 1] but those that the model takes, [b]."""

    row: Row
    guidance: Array
    guess: Guess
    time: Array
    embedded: Array


def empty(rows: int, height: int, width: int, channels: int, extra: int, sizes: int, text: Text) -> Slots:
    """Rows without pictures, for latents [height, width, channels]. `text` gives its shapes and types, b being 1."""

    def zeros(depth: int) -> Array:
        return jnp.zeros((rows, height, width, depth), jnp.float32)

    x, denoised, last, before, noise, fresh, picture = (zeros(channels) for _ in range(7))
    return Slots(
        x=x,
        denoised=denoised,
        last=last,
        before=before,
        noise=noise,
        fresh=fresh,
        picture=picture,
        mask=jnp.ones((rows, height, width, 1), jnp.float32),
        extra=zeros(extra),
        text=Text(*(jnp.zeros((rows, *one.shape[1:]), one.dtype) for one in text)),
        sizes=jnp.zeros((rows, sizes), jnp.float32),
    )


def words(seed: int) -> np.ndarray:
    """uint32 [2]: a seed of 64 bits as a random key takes it."""
    return np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)


def unit_noise(seed: Array, number: Array, shape: tuple[int, ...]) -> Array:
    """Unit noise float32 of `shape`, of a picture's seed (its words) and a number: the same in any batch.

    0 is the noise that it starts from, i + 1 that of its step i.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(seed), number)
    return jax.random.normal(key, shape, jnp.float32)


def refresh(slots: Slots, at: Array, noise: Array) -> Slots:
    """Give row `at` the noise [h, w, c] of its next step."""
    return replace(slots, fresh=slots.fresh.at[at].set(noise))


def admit(
    slots: Slots,
    at: Array,
    noise: Array,
    picture: Array,
    mask: Array,
    extra: Array,
    text: Text,
    sizes: Array,
    amounts: Array,
) -> Slots:
    """Put a picture into row `at`. All but `text` ([1, ...]) lack the row's axis. `amounts`: of noise, of picture."""
    one = replace(
        slots,
        x=amounts[0] * noise + amounts[1] * picture,
        denoised=jnp.zeros_like(noise),
        last=jnp.zeros_like(noise),
        before=jnp.zeros_like(noise),
        noise=noise,
        fresh=jnp.zeros_like(noise),
        picture=picture,
        mask=mask,
        extra=extra,
        text=Text(text.states[0], text.pooled[0]),
        sizes=sizes,
    )
    return jax.tree.map(lambda whole, row: whole.at[at].set(row.astype(whole.dtype)), slots, one)


def admit_text(slots: Slots, at: Array, text: Text, sizes: Array) -> Slots:
    """Put the other pass of a picture into row `at`: a text alone."""
    return replace(
        slots,
        text=Text(*(whole.at[at].set(one[0].astype(whole.dtype)) for whole, one in zip(slots.text, text, strict=True))),
        sizes=slots.sizes.at[at].set(sizes),
    )


def latents_of(slots: Slots, at: Array) -> tuple[Array, Array]:
    """x and what the model saw in it last, each [1, h, w, c], of row `at`."""
    return slots.x[at][None], slots.denoised[at][None]


def denoise(
    family: Family, kernels: Kernels, w: Any, slots: Slots, numbers: Array, places: Array
) -> tuple[Slots, Array]:
    """A step of b rows with the model. `numbers` float32 [b, NUMBERS + adapters], `places` int32 [b, fields].

    Also returns a number that is there when the step is done.
    """
    columns, at = _columns(numbers), _places(places)
    w = bound(w, numbers[:, NUMBERS:])
    return _guided(slots, columns, at, family.predict(w, *_inputs(slots, columns, at), kernels))


def denoise_reusing(
    family: Family, kernels: Kernels, w: Any, slots: Slots, kept: Kept, numbers: Array, places: Array, limits: Array
) -> tuple[Slots, Kept, Array]:
    """`denoise` with first-block caching. `kept`: [r, t, d] each. `limits` float32 [b]: see `Family.predict_reusing`.

    Returns bool [b] last: which rows of the step reused.
    """
    columns, at = _columns(numbers), _places(places)
    rows = len(kept.first)
    own = Kept(*(_taken(values, at.row) for values in kept))
    w = bound(w, numbers[:, NUMBERS:])
    seen, left, reused = family.predict_reusing(w, *_inputs(slots, columns, at), own, limits, at.row < rows, kernels)
    kept = Kept(*(whole.at[at.row].set(one, mode="drop") for whole, one in zip(kept, left, strict=True)))
    return _guided(slots, columns, at, seen)[0], kept, reused


def nothing_kept(rows: int, tokens: int, width: int, text: Text) -> Kept:
    """Before any step, of the type of `text`."""
    return Kept(*(jnp.zeros((rows, tokens, width), text.states.dtype) for _ in range(2)))


def _inputs(slots: Slots, columns: _Columns, at: Places[Array]) -> tuple[Array, Array, Text, Array, Array, Array]:
    """What a family predicts from, after its weights."""
    x, extra, sizes = (_taken(values, at.image) for values in (slots.x, slots.extra, slots.sizes))
    text = Text(*(_taken(values, at.row) for values in slots.text))
    return columns.row.in_scale * x, extra, text, sizes, columns.time, columns.embedded


def _guided(slots: Slots, columns: _Columns, at: Places[Array], seen: Array) -> tuple[Slots, Array]:
    """The slots a step on, where the model has `seen` this in each row."""
    x = _taken(slots.x, at.image)
    without = jnp.take(seen, at.other, axis=0, mode="clip")
    out = without + columns.guidance * (seen - without)
    before = _taken(slots.last, at.image)
    slots = _stepped(slots, columns, at, x, out)
    slots = replace(
        slots,
        last=slots.last.at[at.write].set(out, mode="drop"),
        before=slots.before.at[at.write].set(before, mode="drop"),
    )
    return slots, slots.x[0, 0, 0, 0]


def coast(slots: Slots, numbers: Array, places: Array) -> tuple[Slots, Array]:
    """A step of b rows without the model: its last outputs stand for it, as `Guess` says. Otherwise as `denoise`."""
    columns, at = _columns(numbers), _places(places)
    x, last, before = (_taken(values, at.image) for values in (slots.x, slots.last, slots.before))
    slots = _stepped(slots, columns, at, x, columns.guess.last * last + columns.guess.before * before)
    return slots, slots.x[0, 0, 0, 0]


def _stepped(slots: Slots, columns: _Columns, at: Places[Array], x: Array, out: Array) -> Slots:
    """The slots with x one step on, given what the model sees in it."""
    row = columns.row
    picture, noise, fresh, mask, denoised = (
        _taken(values, at.image) for values in (slots.picture, slots.noise, slots.fresh, slots.mask, slots.denoised)
    )
    seen = row.keep * x + row.gain * out
    made = row.a * x + row.b * seen + row.c * denoised + row.fresh * fresh
    known = row.picture * picture + row.noise * noise
    return replace(
        slots,
        x=slots.x.at[at.write].set((1 - mask) * known + mask * made, mode="drop"),
        denoised=slots.denoised.at[at.write].set(seen, mode="drop"),
    )


def _places(places: Array) -> Places[Array]:
    row, image, other, write = places.T
    return Places(row, image, other, write)


def _columns(numbers: Array) -> _Columns:
    """See `Numbers.flat`."""
    flat, count = numbers[:, :NUMBERS].T, len(Row._fields)
    wide = [one[:, None, None, None] for one in flat]
    return _Columns(Row(*wide[:count]), wide[count], Guess(*wide[count + 2 :]), flat[0], flat[count + 1])


def _taken(values: Array, at: Array) -> Array:
    """Rows of `values`; one past the end gives the last, whose result nobody writes."""
    return jnp.take(values, at, axis=0, mode="clip")
