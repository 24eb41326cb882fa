"""The bench: controllers prepared on an equal budget, judged on the same unseen seeds, with statistics and a report."""
