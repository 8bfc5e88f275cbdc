"""Measurements: quality over seeds, speed as ratios."""
