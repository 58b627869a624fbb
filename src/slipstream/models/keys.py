"""config.json, read by consuming it: a key that no code asked for is an error, never dropped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from slipstream.errors import CheckpointError, UnknownConfigKeys, UnsupportedModel

T = TypeVar("T", int, float, bool, str)


@dataclass(frozen=True)
class _Required:
    """The type of REQUIRED."""


REQUIRED: Final = _Required()

INERT: Final = frozenset(
    {
        # What the file is, who wrote it, and with which code it ran there.
        "_attn_implementation",
        "_name_or_path",
        "architectures",
        "auto_map",
        "dtype",
        "model_type",
        "tokenizer_class",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        # Read by generation and by the tokenizer, not by the model. Older files have all of its defaults.
        *("bad_words_ids", "begin_suppress_tokens", "bos_token_id", "cache_implementation", "decoder_start_token_id"),
        *("diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id"),
        *("exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id", "length_penalty"),
        *("max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences"),
        *("output_scores", "pad_token_id", "prefix", "remove_invalid_values", "repetition_penalty"),
        *("return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params", "temperature"),
        *("top_k", "top_p", "typical_p", "unk_token_id", "use_cache"),
        # Training only.
        "attention_dropout",
        "gradient_checkpointing",
        "initializer_range",
        # Written by PretrainedConfig for every model; they shape what a Python call returns.
        "chunk_size_feed_forward",
        "finetuning_task",
        "id2label",
        "is_encoder_decoder",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "tf_legacy_loss",
        "torchscript",
        "use_bfloat16",
    }
)
"""Keys that cannot change a forward pass, in any family."""

NEUTRAL: Final[Mapping[str, Any]] = {
    "add_cross_attention": False,
    "is_decoder": False,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
}
"""Keys of PretrainedConfig that are written for every model, and say nothing with these values."""


class Keys:
    """The keys of one config.json, or of one mapping inside it, as they are consumed.

    `family`, `path`, which prefixes names ("rope_scaling."), and `file` are for messages. Every getter consumes its
    key. A JSON null counts as absent, except for `nullable`.
    """

    def __init__(self, config: Mapping[str, Any], family: str, path: str = "", file: str = "config.json") -> None:
        self._left = dict(config)
        self._sections: list[Keys] = []
        self.family = family
        self._path = path
        self._file = file

    def take(self, name: str, kind: type[T], default: T | _Required = REQUIRED) -> T:
        """The value of a key, `default` where it is absent or null. Raises CheckpointError if required or mistyped."""
        value = self._left.pop(name, None)
        if value is not None:
            return self._typed(name, value, kind)
        if isinstance(default, _Required):
            raise self._missing(name)
        return default

    def optional(self, name: str, kind: type[T]) -> T | None:
        """The value of a key, None where it is absent or null."""
        return self.nullable(name, kind, None)

    def nullable(self, name: str, kind: type[T], absent: T | None) -> T | None:
        """The value of a key for which null and absence differ: None for null, `absent` where there is no such key."""
        value = self._left.pop(name, absent)
        return None if value is None else self._typed(name, value, kind)

    def size(self, name: str, default: int | _Required = REQUIRED) -> int:
        """A count: an int of at least 1."""
        return self._counted(name, self.take(name, int, default))

    def positive(self, name: str, default: float | _Required = REQUIRED) -> float:
        """A number over 0."""
        value = self.take(name, float, default)
        if not 0 < value < float("inf"):
            raise CheckpointError(f"{self._file}: {self._path}{name} must be over 0, got {value:g}")
        return value

    def share(self, name: str, heads: int, absent: int | None = None) -> int:
        """A number of key/value heads that `heads` attention heads can share evenly; None, or null, is one a head."""
        value = self.nullable(name, int, absent)
        if value is None:
            return heads
        if value < 1 or heads % value:
            raise CheckpointError(f"{self._file}: {heads} attention heads cannot share {value} key/value heads")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """A required list of numbers."""
        value = self._left.pop(name, None)
        if not isinstance(value, list | tuple):
            raise CheckpointError(f"{self._file}: {self._path}{name} must be a list of numbers, got {value!r}")
        return tuple(self._typed(f"{name}[{i}]", item, float) for i, item in enumerate(value))

    def sizes(self, name: str, default: Sequence[int] | _Required = REQUIRED) -> tuple[int, ...]:
        """A list of counts, each at least 1, and at least one of them."""
        value = self._left.pop(name, None)
        if value is None:
            if isinstance(default, _Required):
                raise self._missing(name)
            return tuple(default)
        if not isinstance(value, list | tuple) or not value:
            raise CheckpointError(f"{self._file}: {self._path}{name} must be a list of sizes, got {value!r}")
        sizes = tuple(self._typed(f"{name}[{i}]", item, int) for i, item in enumerate(value))
        if min(sizes) < 1:
            raise CheckpointError(f"{self._file}: {self._path}{name} must be at least 1 everywhere, got {value!r}")
        return sizes

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers, empty where it is absent or null."""
        value = self._left.pop(name, None) or ()
        if not isinstance(value, list | tuple):
            raise CheckpointError(f"{self._file}: {self._path}{name} must be a list of whole numbers, got {value!r}")
        return tuple(self._typed(f"{name}[{i}]", item, int) for i, item in enumerate(value))

    def counts(self, name: str, count: int, default: int | _Required = REQUIRED) -> tuple[int, ...]:
        """A count for each of `count` parts of a model: a list of them, or one number for all. Each is at least 1."""
        value = self._left.get(name)
        if not isinstance(value, list | tuple):
            return (self.size(name, default),) * count
        del self._left[name]
        if len(value) != count:
            raise CheckpointError(f"{self._file}: {self._path}{name} has {len(value)} numbers for {count} parts")
        named = ((f"{name}[{i}]", item) for i, item in enumerate(value))
        return tuple(self._counted(one, self._typed(one, item, int)) for one, item in named)

    def nested(self, name: str) -> Any:
        """A value of any form, None where it is absent: the caller says what it may be."""
        return self._left.pop(name, None)

    def strings(self, name: str) -> tuple[str, ...] | None:
        """A list of strings, None where it is absent or null."""
        value = self._left.pop(name, None)
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            raise CheckpointError(f"{self._file}: {self._path}{name} must be a list of strings, got {value!r}")
        return tuple(self._typed(f"{name}[{i}]", item, str) for i, item in enumerate(value))

    def expect(self, name: str, only: T | list[Any]) -> None:
        """Consume a key that this code computes for one value alone. Raises UnsupportedModel for another."""
        value = self._left.pop(name, None)
        if value is not None and value != only:
            raise UnsupportedModel(
                f"{self._file} sets {self._path}{name} to {value!r}; Slipstream's {self.family} computes {only!r} only"
            )

    def section(self, name: str) -> Keys | None:
        """The mapping under a key, to be consumed in turn (`finish` checks it too); None where absent or null."""
        value = self._left.pop(name, None)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise CheckpointError(f"{self._file}: {self._path}{name} must be an object, got {value!r}")
        section = Keys(value, self.family, f"{self._path}{name}.", self._file)
        self._sections.append(section)
        return section

    def ignore(self, names: Iterable[str]) -> None:
        """Consume keys that are known to change nothing."""
        for name in names:
            self._left.pop(name, None)

    def left(self) -> list[str]:
        """Full names of the keys that nobody consumed. A key set to null says nothing, and is not counted."""
        own = [self._path + name for name, value in self._left.items() if value is not None]
        return own + [name for section in self._sections for name in section.left()]

    def finish(self, inert: Iterable[str] = ()) -> None:
        """End of reading. Raises UnknownConfigKeys naming what is left, besides INERT and the family's own `inert`."""
        for name, only in NEUTRAL.items():
            if self._left.get(name) == only:
                del self._left[name]
        self.ignore((*INERT, *inert))
        if left := self.left():
            raise UnknownConfigKeys(f"{', '.join(sorted(left))} ({self.family})")

    def _missing(self, name: str) -> CheckpointError:
        return CheckpointError(f"{self._file} has no {self._path}{name}, which {self.family} models need")

    def _counted(self, name: str, value: int) -> int:
        if value < 1:
            raise CheckpointError(f"{self._file}: {self._path}{name} must be at least 1, got {value}")
        return value

    def _typed(self, name: str, value: Any, kind: type[T]) -> T:
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return kind(value)
        if kind is int and isinstance(value, float) and value.is_integer():
            return kind(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise CheckpointError(f"{self._file}: {self._path}{name} must be {kind.__name__}, got {value!r}")
        return value
