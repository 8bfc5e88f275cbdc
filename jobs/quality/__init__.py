"""Measures of label quality."""
