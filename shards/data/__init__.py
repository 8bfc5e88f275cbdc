"""Images, labels, classes and the plan."""
