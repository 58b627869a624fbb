"""Writes a GGUF file in other blocks with llama.cpp's own quantizer: `python -P quantize.py SOURCE TARGET Q4_0`."""

from __future__ import annotations

import ctypes
import sys

import llama_cpp

_KINDS = {"Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0}


def main(source: str, target: str, kind: str) -> int:
    """The exit status: 0 if `target` was written."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = _KINDS[kind]
    parameters.allow_requantize = True  # the source has no floats
    return int(llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
