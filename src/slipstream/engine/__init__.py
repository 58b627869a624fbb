"""The engine: a plain-Python half that decides (request, scheduler, policy, pages, prefix, shapes) and a JAX half that computes."""
