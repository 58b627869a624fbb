"""Attention for accelerators, written in Pallas: compiled by Mosaic for a TPU and by Triton for a GPU."""
