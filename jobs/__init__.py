"""The stages of a round and where they run."""
