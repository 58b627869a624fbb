"""One step of an image model's denoiser, measured beside other engines on this machine's CPU."""
