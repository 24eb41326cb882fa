"""Budgets that are too small to tell anything."""

LEAST = 5  # trainings, or seeds


def caution(count: int, what: str) -> str | None:
    """A warning where there are too few of something; None where there are enough.

    Args:
        count: how many.
        what: of what, for example "trainings to learn from".
    """
    if count >= LEAST:
        return None
    return f"caution: {count} {what}, too few to tell anything: this shows that everything runs, and no more"
