"""Plain data that crosses process and layer borders: sampling parameters, outputs, engine messages. No JAX here."""
