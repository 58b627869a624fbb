"""From text to token ids and back: tokenizers, chat templates, streaming detokenization, stop strings."""
