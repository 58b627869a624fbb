"""Rotary positions: the frequencies of every scaling that config.json can name, and the angles of a step.

The scalings follow transformers' `modeling_rope_utils` in meaning. Frequencies are computed here in float64 on the host
and rounded once to float32; the angles of a step are float32 on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import jax.numpy as jnp
import numpy as np
from jax import Array

from slipstream.errors import CheckpointError, UnsupportedModel
from slipstream.models.keys import Keys


@dataclass(frozen=True)
class Growth:
    """Dynamic NTK: past `limit` tokens the base grows with the length.

    transformers recomputes the base from the longest position of a call, and keeps keys that were rotated earlier. In a
    paged engine that would make a token's keys depend on how its prompt was cut into chunks, on its neighbours in the
    batch, and on whose prompt filled a shared prefix page. Here the base of a token depends on its own position alone:
    the length that counts is position + 1. That gives the very numbers of transformers for a prompt of up to `limit`
    tokens and everything decoded after it, one token at a time, past the limit too. It differs where transformers is
    given a prompt that is itself longer than `limit`: there it rotates all of it with the base of the whole prompt.
    """

    factor: float
    limit: int


@dataclass(frozen=True)
class Short:
    """LongRoPE's other frequencies: those of an engine where no context is longer than `limit` tokens."""

    frequencies: tuple[float, ...]
    limit: int


@dataclass(frozen=True)
class Rope:
    """One rotary table.

    `frequencies`: radians a position for each of the r/2 pairs. The first r elements of a head are turned, element i
    with element i + r/2; in most models that is the whole head.
    `magnitude`: factor on sine and cosine (yarn, longrope). `growth`: dynamic NTK, else None. `short`: of longrope.
    `sharpness`: factor on attention's scores, which DeepSeek's models take from yarn's mscale_all_dim; others do not.
    """

    frequencies: tuple[float, ...]
    magnitude: float = 1.0
    growth: Growth | None = None
    short: Short | None = None
    sharpness: float = 1.0

    def angles(self, positions: Array) -> tuple[Array, Array]:
        """Cosine and sine, each float32 [t, r/2], at `positions` i32[t]."""
        frequencies = jnp.asarray(self.frequencies, jnp.float32)
        at = positions.astype(jnp.float32)[:, None]
        if self.growth is not None:
            length = jnp.maximum(at + 1, self.growth.limit)
            stretch = self.growth.factor * length / self.growth.limit - (self.growth.factor - 1)
            # The base is multiplied by stretch ** (r / (r - 2)); frequency i is base ** (-2i / r).
            pairs = len(self.frequencies)
            frequencies = frequencies * stretch ** (-jnp.arange(pairs, dtype=jnp.float32) / (pairs - 1))
        angles = at * frequencies
        return jnp.cos(angles) * self.magnitude, jnp.sin(angles) * self.magnitude

    def longest(self, max_position: int) -> int:
        """The longest context of a model whose config.json states this max_position_embeddings."""
        return max_position if self.growth is None else int(max_position * self.growth.factor)

    def within(self, longest: int) -> Rope:
        """The table of an engine whose contexts have at most `longest` tokens."""
        if self.short is None or longest > self.short.limit:
            return self
        return replace(self, frequencies=self.short.frequencies, short=None)


@dataclass(frozen=True)
class _Given:
    """What every scaling starts from: base, elements turned, the config's length, the pretraining length if stated."""

    base: float
    turned: int
    max_position: int
    original: int | None

    @property
    def plain(self) -> np.ndarray:
        """Frequencies without scaling, float64 [r/2]."""
        return self.base ** -(np.arange(0, self.turned, 2, dtype=np.float64) / self.turned)

    def pretrained(self, keys: Keys) -> int:
        """The pretraining length: config.json's own key first, then the scaling's, then max_position_embeddings."""
        stated = keys.optional("original_max_position_embeddings", int)
        length = self.original or stated or self.max_position
        if length < 2:
            raise CheckpointError(f"config.json: original_max_position_embeddings must be at least 2, got {length}")
        return length


def _default(keys: Keys, given: _Given) -> Rope:
    # Written by some converters next to rope_type "default", where they change nothing.
    keys.expect("factor", 1.0)
    return _rope(given.plain)


def _linear(keys: Keys, given: _Given) -> Rope:
    """Position interpolation (Chen et al., 2023)."""
    return _rope(given.plain / keys.positive("factor"))


def _dynamic(keys: Keys, given: _Given) -> Rope:
    """NTK-aware scaling that starts past max_position_embeddings; see Growth."""
    keys.ignore(("original_max_position_embeddings",))  # Stated by some files; transformers does not read it either.
    return _rope(given.plain, growth=Growth(keys.positive("factor"), given.max_position))


def _yarn(keys: Keys, given: _Given) -> Rope:
    """YaRN (Peng et al., 2023): long wavelengths interpolated, short ones kept, a ramp between, hotter attention."""
    original = given.pretrained(keys)
    factor = keys.optional("factor", float)
    if factor is None:
        factor = given.max_position / original
    magnitude = keys.optional("attention_factor", float)
    mscale, mscale_all_dim = keys.optional("mscale", float), keys.optional("mscale_all_dim", float)
    if magnitude is None:
        magnitude = _heat(factor, 1.0)
        if mscale and mscale_all_dim:
            magnitude = _heat(factor, mscale) / _heat(factor, mscale_all_dim)
    fast, slow = keys.optional("beta_fast", float) or 32.0, keys.optional("beta_slow", float) or 1.0
    truncate = keys.take("truncate", bool, True)
    keys.ignore(("finetuned",))

    def pair_turning(turns: float) -> float:
        """The (fractional) pair that makes this many turns over the pretraining length."""
        return given.turned * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(given.base))

    low, high = pair_turning(fast), pair_turning(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, given.turned - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(given.turned // 2) - low) / (high - low), 0, 1)
    table = _rope(given.plain * (1 - ramp) + given.plain / factor * ramp, magnitude)
    return replace(table, sharpness=_heat(factor, mscale_all_dim or 0.0) ** 2)


def _llama3(keys: Keys, given: _Given) -> Rope:
    """Llama 3.1: wavelengths over the pretraining length / low_freq_factor are interpolated, a blend up to high."""
    original = given.pretrained(keys)
    factor = keys.positive("factor")
    low, high = keys.take("low_freq_factor", float), keys.take("high_freq_factor", float)
    if low >= high:
        raise CheckpointError(f"config.json: low_freq_factor ({low}) must be below high_freq_factor ({high})")
    turns = original * given.plain / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return _rope(given.plain * (keep + (1 - keep) / factor))


def _longrope(keys: Keys, given: _Given) -> Rope:
    """LongRoPE (Ding et al., 2024): a searched factor a pair, one set for short contexts and one for long ones.

    transformers takes the set by the length of each call. Keys of one context must be rotated by one set, and a shared
    page has no request of its own, so an engine has one set: the long one where its longest context (--max-model-len,
    or all that the model can) is over the pretraining length, else the short one. See `Rope.within`.
    """
    original = given.pretrained(keys)
    factor = keys.optional("factor", float)
    if factor is None:
        factor = given.max_position / original
    magnitude = keys.optional("attention_factor", float)
    if magnitude is None:
        magnitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    short, long = (
        _rope(given.plain / _each(keys.numbers(name), given, name), magnitude)
        for name in ("short_factor", "long_factor")
    )
    return replace(long, short=Short(short.frequencies, original)).within(given.max_position)


def _factors(keys: Keys, given: _Given) -> Rope:
    """A divisor for every pair, as GGUF's rope_freqs.weight gives them (llama.cpp's form of llama3 scaling)."""
    return _rope(given.plain / _each(keys.numbers("factors"), given, "factors"))


SCALINGS: Final[dict[str, Callable[[Keys, _Given], Rope]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
    "factors": _factors,
}
"""rope_type -> its reader. "factors" is Slipstream's own name, given by GGUF checkpoints."""


def read_rope(
    keys: Keys | None,
    *,
    base: float,
    head_dim: int,
    max_position: int,
    original: int | None = None,
    partial: float | None = None,
    aliases: Mapping[str, str] = MappingProxyType({}),
) -> Rope:
    """The table that one `rope_scaling` or `rope_parameters` mapping describes; None means no scaling.

    `base` is used where the mapping has no rope_theta, `original` is config.json's own
    original_max_position_embeddings. `partial`: the share of a head that is turned where the mapping does not say it,
    in a family that can turn a part; None in one that cannot. `aliases`: a family's own names for scalings. Raises
    UnsupportedModel for a type that SCALINGS lacks.
    """
    kind = "default"
    if keys is not None:
        kinds = (keys.optional("rope_type", str), keys.optional("type", str))
        kind = kinds[0] or kinds[1] or kind
        kind = aliases.get(kind, kind)
        if kind not in SCALINGS:
            raise UnsupportedModel(f"rope type {kind!r} is not supported; there are: {', '.join(SCALINGS)}")
        base = keys.positive("rope_theta", base)
        if partial is None:
            keys.expect("partial_rotary_factor", 1.0)
        else:
            partial = keys.positive("partial_rotary_factor", partial)
    turned = head_dim if partial is None else int(head_dim * partial)
    if turned % 2 or not 0 < turned <= head_dim:
        what = "head_dim" if turned == head_dim else f"number of elements to turn, at most {head_dim}"
        raise CheckpointError(f"config.json: rotary positions need an even {what}, got {turned}")
    if base <= 1:
        raise CheckpointError(f"config.json: rope_theta must be over 1, got {base:g}")
    return SCALINGS[kind](keys or Keys({}, ""), _Given(base, turned, max_position, original))


def read_only_rope(keys: Keys, *, base: float = 10_000.0, head_dim: int, max_position: int) -> Rope:
    """The table of a model that has one for all layers and turns whole heads, from the keys of its config.json."""
    keys.expect("partial_rotary_factor", 1.0)
    return read_rope(
        keys.section("rope_scaling") or keys.section("rope_parameters"),
        base=keys.positive("rope_theta", base),
        head_dim=head_dim,
        max_position=max_position,
        original=keys.optional("original_max_position_embeddings", int),
    )


def _rope(frequencies: np.ndarray, magnitude: float = 1.0, growth: Growth | None = None) -> Rope:
    return Rope(tuple(float(f) for f in frequencies.astype(np.float32)), magnitude, growth)


def _each(factors: tuple[float, ...], given: _Given, name: str) -> np.ndarray:
    if len(factors) != given.turned // 2 or min(factors) <= 0:
        raise CheckpointError(
            f"config.json: {name} must have a positive number for each of {given.turned // 2} pairs, got {len(factors)}"
        )
    return np.asarray(factors, np.float64)


def _heat(factor: float, mscale: float) -> float:
    """YaRN's factor on sine and cosine, the square root of its attention temperature."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
