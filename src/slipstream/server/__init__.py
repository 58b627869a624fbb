"""The HTTP process: OpenAI's API over an `EngineClient`. No JAX."""
