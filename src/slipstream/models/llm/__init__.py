"""Language models, a file a family."""
