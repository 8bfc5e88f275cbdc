"""Losses and augmentation."""
