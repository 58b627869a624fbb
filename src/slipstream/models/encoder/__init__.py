"""Encoders: a text at once, each token seeing all others. A file a family."""
