"""`open_checkpoint`: a folder or a .gguf file as a Checkpoint. Tensor data is mapped, not read, so it takes no time."""

from __future__ import annotations

from pathlib import Path

from slipstream.checkpoint import folder as hf
from slipstream.checkpoint import gguf_config, gguf_tokenizer, quantized, safetensors_source
from slipstream.checkpoint.gguf_file import GgufFile
from slipstream.checkpoint.gguf_source import GgufSource
from slipstream.checkpoint.joined import Joined
from slipstream.checkpoint.renamed import Renamed
from slipstream.checkpoint.sentence_transformers import dense_files, pooling_of, tokenizer_for
from slipstream.errors import CheckpointError
from slipstream.spec.source import Checkpoint, Source

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a model folder (safetensors, or a single .gguf) or a .gguf file.

    Raises CheckpointError if the files are damaged, hostile, pickled or not there, UnsupportedModel for a GGUF
    architecture that is not served, UnknownConfigKeys for GGUF metadata that no code reads.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise CheckpointError(f"{path} is neither a folder nor a .gguf file")
        return _open_gguf(path)
    if any((path / name).exists() for name in (safetensors_source.SINGLE_NAME, safetensors_source.INDEX_NAME)):
        return _open_safetensors(path)
    return _open_gguf(_only_gguf(path))


def why_no_tokenizer(checkpoint: Checkpoint) -> str:
    """A sentence for a checkpoint whose tokenizer is None: what is missing and what to do."""
    if isinstance(checkpoint.source, GgufSource):
        return f"{checkpoint.path} holds no tokenizer in its metadata: text cannot be encoded; send token ids"
    return hf.why_no_tokenizer(checkpoint.path)


def _open_safetensors(path: Path) -> Checkpoint:
    source, config = quantized.opened(safetensors_source.open_folder(path), hf.config_of(path))
    pooling = pooling_of(path)
    if pooling is not None and pooling.dense:
        files = dense_files(path, pooling)
        beside = [_under(name, safetensors_source.SafetensorsSource([file])) for name, file in files.items()]
        source = Joined([source, *beside])
    return Checkpoint(
        path=path,
        config=config,
        source=source,
        tokenizer=tokenizer_for(hf.tokenizer_of(path), pooling),
        generation=hf.generation_of(path, config),
        pooling=pooling,
    )


def _under(folder: str, source: Source) -> Source:
    return Renamed.of(source, lambda name: f"{folder}.{name}")


def _open_gguf(path: Path) -> Checkpoint:
    file = GgufFile(path)
    config = gguf_config.config_of(file)
    tokenizer = gguf_tokenizer.tokenizer_of(file)
    if tokenizer is not None and tokenizer.vocab is not None and len(tokenizer.vocab.tokens) > config["vocab_size"]:
        raise CheckpointError(
            f"{path}: the tokenizer has {len(tokenizer.vocab.tokens)} tokens, the embedding {config['vocab_size']} rows"
        )
    heads = config["num_attention_heads"], config["num_key_value_heads"]
    return Checkpoint(
        path=path,
        config=config,
        source=GgufSource(file, gguf_config.architecture_of(file), heads),
        tokenizer=tokenizer,
        generation=gguf_tokenizer.generation_of(file, tokenizer),
    )


def _only_gguf(folder: Path) -> Path:
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    if files:
        raise CheckpointError(f"{folder} holds {len(files)} GGUF files; name one: {', '.join(f.name for f in files)}")
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    if pickles:
        raise CheckpointError(
            f"{folder} holds weights as pickle only ({pickles[0]}): reading it would run the code inside, so it is not "
            "read. Convert it to safetensors."
        )
    raise CheckpointError(f"{folder} holds no model.safetensors, no model.safetensors.index.json and no .gguf file")
