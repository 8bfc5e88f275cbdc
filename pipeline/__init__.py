"""The user's side: commands, settings, the plan, rounds, status and reports."""
