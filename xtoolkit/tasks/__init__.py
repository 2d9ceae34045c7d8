"""Evaluations; importing this package registers them."""
