"""Small configs of every variant of a family, as config.json would say them: used by tests, parity and goldens."""

from __future__ import annotations

from typing import Any

from tests.models.variants import gemma, granite, llama, olmo2, phi3, qwen

MODULES = {module.__name__.rpartition(".")[2]: module for module in (llama, qwen, gemma, phi3, olmo2, granite)}

VARIANTS: dict[str, dict[str, Any]] = {
    name: config for module in MODULES.values() for name, config in module.VARIANTS.items()
}
