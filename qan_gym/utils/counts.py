"""Numbers of things, in words."""


def counted(count: int, noun: str) -> str:
    """ "1 seed", "2 seeds", "1,000 seeds"; the noun is in the singular, and takes an s."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
