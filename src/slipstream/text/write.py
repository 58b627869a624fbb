"""A tokenizer written as Hugging Face's files, for a checkpoint whose tokenizer came out of a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path

from slipstream.spec.tokenizer import TokenizerSpec
from slipstream.text import from_gguf


def write_tokenizer(spec: TokenizerSpec, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja of a GGUF vocabulary, in a folder that exists.

    Nothing is written for a specification that has a tokenizer.json of its own. Raises CheckpointError.
    """
    if spec.vocab is None:
        return
    from_gguf.build(spec.vocab).save(str(folder / "tokenizer.json"))
    ends = {"add_bos_token": spec.add_bos, "add_eos_token": spec.add_eos}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{role}_token": text for role, text in spec.special.items()},
        **{name: flag for name, flag in ends.items() if flag is not None},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if template := spec.chat_templates.get("default"):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
