"""The rounds of a run, and the driver that does their stages."""
