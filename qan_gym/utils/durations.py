"""How long something takes, in words."""

LONGEST_IN_SECONDS = 90


def in_words(seconds: float) -> str:
    """About how long: in seconds, or in minutes from 90 seconds on."""
    if seconds < LONGEST_IN_SECONDS:
        return f"about {seconds:.0f} seconds"
    return f"about {seconds / 60:.0f} minutes"
