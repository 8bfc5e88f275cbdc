"""What the user sees: commands, settings, the plan, rounds, status and reports."""
