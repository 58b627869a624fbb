"""Live comparisons with transformers and PyTorch, run by scripts/parity. They fail where those are missing."""
