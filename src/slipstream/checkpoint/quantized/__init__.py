"""Quantized checkpoints of Hugging Face folders: config.json's `quantization_config` and what it says of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from slipstream.checkpoint.quantized.awq import Awq
from slipstream.checkpoint.quantized.compressed_tensors import CompressedTensors
from slipstream.checkpoint.quantized.fp8 import Fp8
from slipstream.checkpoint.quantized.gptq import Gptq
from slipstream.checkpoint.quantized.method import Method
from slipstream.checkpoint.quantized.mxfp4 import Mxfp4
from slipstream.checkpoint.quantized.section import Section
from slipstream.checkpoint.quantized.source import QuantizedSource
from slipstream.checkpoint.safetensors_source import SafetensorsSource
from slipstream.spec.source import Source

KEY = "quantization_config"

METHODS: Mapping[str, Callable[[Section], Method]] = {
    "awq": Awq.from_config,
    "compressed-tensors": CompressedTensors.from_config,
    "fp8": Fp8.from_config,
    "gptq": Gptq.from_config,
    "mxfp4": Mxfp4.from_config,
}
"""By `quant_method`."""


def opened(source: SafetensorsSource, config: Mapping[str, Any]) -> tuple[Source, dict[str, Any]]:
    """A source that reads what config.json says of quantization, and the config without it.

    Raises UnsupportedModel for a method or scheme that is not read, which lists those that are; UnknownConfigKeys;
    CheckpointError.
    """
    rest = dict(config)
    stated = rest.pop(KEY, None)
    if stated is None:
        return source, rest
    section = Section(stated, KEY)
    method = section.choice("quant_method", tuple(METHODS))
    return QuantizedSource(source, METHODS[method](section)), rest
