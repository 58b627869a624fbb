"""Image models: text encoders, denoisers, autoencoders. A file each, as in models/llm.

Letters beside those of `spec`: b is the batch, t a member's tokens, c the channels that a product takes in (in
attention the tokens that are seen), s tokens of text, k which of a condition's scales and shifts, m an index of one of
them. Pictures are [b, height, width, channels].
"""
