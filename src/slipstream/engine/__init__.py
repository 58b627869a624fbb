"""The engine: a plain half that decides (scheduler, policy, pages, prefix, shapes) and a JAX half that computes."""
