"""Benchmarks that users run too: the load generator for any OpenAI endpoint."""
