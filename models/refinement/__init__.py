"""From teacher scores to refined labels."""
