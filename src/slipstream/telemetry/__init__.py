"""What the server says about itself: logs and spans. Never prompts, replies or keys."""
