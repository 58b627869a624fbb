"""Quantized numbers: how they are packed, rounded and scaled, and the leaf of a tree of weights that holds them."""
