"""Bytes on disk: sources, plans, shards, arrays and records."""
