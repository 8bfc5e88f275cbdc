"""Scheduling shards over workers."""
