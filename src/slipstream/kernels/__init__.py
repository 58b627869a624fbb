"""Attention and products: one function each, several implementations, chosen by a table."""
