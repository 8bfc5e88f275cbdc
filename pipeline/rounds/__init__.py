"""Running the rounds of a run."""
