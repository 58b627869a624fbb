"""From a model's name to its weights: names, downloads, safetensors, GGUF, loading over a plan."""
