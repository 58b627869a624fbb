"""Benchmarks that users run too."""
