"""Weight files, shipped and read."""
