"""Comparison, inference and judge accuracy on held-out prompts."""
