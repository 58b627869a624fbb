"""Arrays between pages that nobody may touch: a read or write outside of one ends the process at once.

The address sanitizer does not see the masked loads and stores of vector instructions; the processor does.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PAGE = mmap.PAGESIZE
_C = ctypes.CDLL(None, use_errno=True)
_NONE = 0


def guarded(array: NDArray[Any], *, at_end: bool) -> NDArray[Any]:
    """A copy of `array` that ends right before a forbidden page, or begins right behind one (`at_end` False)."""
    pages = -(-max(array.nbytes, 1) // _PAGE)
    memory = mmap.mmap(-1, (pages + 2) * _PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    offset = (pages + 1) * _PAGE - array.nbytes if at_end else _PAGE
    view = np.frombuffer(memory, array.dtype, array.size, offset).reshape(array.shape)
    view[...] = array
    for page in (start, start + (pages + 1) * _PAGE):
        if _C.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(_PAGE), _NONE):
            raise OSError(ctypes.get_errno(), "mprotect failed")
    return view
