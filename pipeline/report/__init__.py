"""The report of a round: its numbers, alarms, pictures and page."""
