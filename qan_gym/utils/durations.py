"""How long something takes, in words."""

from qan_gym.utils.counts import counted

LONGEST_IN_SECONDS = 90


def in_words(seconds: float) -> str:
    """About how long: in seconds, or in minutes from 90 seconds on."""
    if seconds < LONGEST_IN_SECONDS:
        return f"about {counted(round(seconds), 'second')}"
    return f"about {counted(round(seconds / 60), 'minute')}"
