"""The bench: controllers, prepared on equal budgets, evaluated on the same unseen seeds, and compared in a report.

`grid` says what is compared, `preparation` prepares a controller, `rollout` plays it, `runner` does both for every cell
of a grid and keeps the `results`, `report` writes what they say.
"""
