"""Weights between the toolkit's names and those of published checkpoints: pure functions, one file a format."""
