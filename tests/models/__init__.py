"""Tests of the model families. No PyTorch here: comparisons with it are in tests/parity."""
