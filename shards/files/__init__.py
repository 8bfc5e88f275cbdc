"""Atomic files, locks and their errors."""
