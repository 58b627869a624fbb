"""Logs, metrics and traces. No JAX, and never a prompt, a reply or a key."""
