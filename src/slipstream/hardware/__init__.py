"""What the machine offers: CPUs and memory within cgroup limits. No JAX."""
