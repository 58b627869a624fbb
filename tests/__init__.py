"""Tests, in the order of src."""
