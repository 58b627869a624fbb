"""Small integers in 32-bit words, as checkpoints store them.

A word holds 32 / bits numbers without sign, the first in the lowest bits unless an `order` says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""AWQ's order of 4-bit numbers: from the lowest bits up, a word holds number 0, 2, 4, 6, 1, 3, 5, 7 of its eight.

From AutoAWQ's packing code; see also the dequantization of vLLM's AWQ kernels, which undoes it.
"""


def unpack(words: np.ndarray, bits: int, order: Sequence[int] | None = None) -> np.ndarray:
    """Words, 32-bit [..., n], as uint8 [..., n * 32 / bits].

    `order[i]`: which number of a word is the i-th from the lowest bits up.
    """
    each = 32 // bits
    if bits == 8:
        numbers = np.ascontiguousarray(words, "<u4").view(np.uint8).reshape(*words.shape, each)
    else:
        raw = np.ascontiguousarray(words, "<u4").view(np.uint8).reshape(*words.shape, 4)
        numbers = np.empty((*words.shape, each), np.uint8)
        per_byte, mask = 8 // bits, np.uint8((1 << bits) - 1)
        for i in range(per_byte):
            numbers[..., i::per_byte] = raw >> np.uint8(i * bits) & mask
    if order is not None:
        numbers = numbers[..., np.argsort(order)]
    return numbers.reshape(*words.shape[:-1], words.shape[-1] * each)


def pack(numbers: np.ndarray, bits: int, order: Sequence[int] | None = None) -> np.ndarray:
    """Numbers uint8 [..., n], n a multiple of 32 / bits, as words int32 [..., n * bits / 32]: undoes `unpack`."""
    each = 32 // bits
    grouped = numbers.reshape(*numbers.shape[:-1], numbers.shape[-1] // each, each)
    if order is not None:
        grouped = grouped[..., list(order)]
    per_byte = 8 // bits
    raw = np.zeros((*grouped.shape[:-1], 4), np.uint8)
    for i in range(per_byte):
        raw |= grouped[..., i::per_byte] << np.uint8(i * bits)
    return raw.view("<i4").reshape(grouped.shape[:-1])
