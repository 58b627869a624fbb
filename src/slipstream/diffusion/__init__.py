"""Pictures from noise: schedules, the families' pipelines, a pool of images that share denoising steps."""
