"""The stages of a run as Ray jobs."""
