"""KV pages from one worker to another. Any failure means that the fetching worker computes them itself."""
