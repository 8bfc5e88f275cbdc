"""A run folder: created, opened, locked, inspected."""
