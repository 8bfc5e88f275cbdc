"""Weights and formats of other programs."""
