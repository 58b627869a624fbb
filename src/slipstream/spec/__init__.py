"""What models, checkpoints and kernels agree on: axes, parameters, sources, tokenizer data. No JAX here.

Shapes are letters, the same everywhere:

| letter | axis | letter | axis |
|---|---|---|---|
| t | packed tokens of a step | d | embedding (residual stream) |
| s | sequences (rows) of a step | n | query heads |
| p | pages of one sequence | k | key/value heads |
| P | pages of the whole cache | g | query heads per key/value head |
| b | tokens in a page | h | size of one head |
| l | layers | f | feed-forward hidden |
| c | tokens of context | v | vocabulary |
| e | experts | j | experts chosen for a token |
| z | latent of keys and values | a | latent of queries |
| r | rotated part of a head | o | size of one head of values |
"""
