"""Which tasks a round has, and which of them are stale."""
