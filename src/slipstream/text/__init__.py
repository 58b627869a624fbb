"""From text to token ids and back: tokenizers, chat templates, streaming detokenization, stop strings."""

from slipstream.text.detokenize import Detokenizer, TextDelta
from slipstream.text.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Detokenizer", "TextDelta", "Tokenizer", "load_tokenizer"]
