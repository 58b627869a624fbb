"""Several processes with one set of devices, by JAX's multi-controller runtime."""

from __future__ import annotations

import jax


def join_devices(coordinator: str, rank: int, size: int) -> None:
    """Make `jax.devices()` those of all `size` processes, before JAX looks for any. Returns once all have called.

    `coordinator`: host:port, where process 0 listens. It asks for no secret, nor do the collectives of a CPU or a GPU:
    the network between the members must be trusted.
    """
    # Its handler of SIGTERM would replace ours; nothing here asks whether a machine will be taken away.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator,
        num_processes=size,
        process_id=rank,
        coordinator_bind_address=coordinator if rank == 0 else None,
    )
