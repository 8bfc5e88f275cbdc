"""The formats of what is stored."""
