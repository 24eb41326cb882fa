"""Budgets that are too small to tell anything."""

from collections.abc import Collection

from qan_gym.utils.counts import counted

LEAST = 5  # trainings, or seeds
LEAST_SEEDS = 5  # of qan check: with three sequences p = 0.0067 at best; with four seeds, 0.018
LEAST_STEPS = 2  # of an episode of qan check: the first action is the same in every sequence


def caution(count: int, noun: str, purpose: str = "") -> str | None:
    """A warning where there are too few of something; None where there are enough.

    Args:
        count: how many.
        noun: of what, in the singular: "training".
        purpose: for what: " to learn from".
    """
    if count >= LEAST:
        return None
    too_few = "too few to tell anything: this shows that everything runs, and no more"
    return f"caution: {counted(count, noun)}{purpose}, {too_few}"


def cautions(prepared: Collection[int], evaluation_seeds: int) -> list[str]:
    """The warnings of a bench.

    Args:
        prepared: the budgets of its preparations, in trainings; empty: nothing is prepared.
        evaluation_seeds: the fewest that a controller is judged on.
    """
    few = [caution(min(prepared), "training", " to prepare on")] if prepared else []
    few.append(caution(evaluation_seeds, "evaluation seed"))
    return [one for one in few if one is not None]
