"""Names that are not among those there are: a message that says which one was probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches

NEAR = 0.65  # of 1: difflib's measure of likeness
MANY = 12  # names: more of them are not listed where one is near


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The nearest name that there is, to go behind the wrong one in a message; empty where none is near."""
    nearest = get_close_matches(str(name), list(known), n=1, cutoff=NEAR)
    return f": did you mean {nearest[0]!r}?" if nearest else ""


def instead_of(name: object, known: Iterable[str]) -> str:
    """What goes behind a wrong name: the nearest one that there is, and all of them if they are few or none is near."""
    names = list(known)
    meant = did_you_mean(name, names)
    if meant and len(names) > MANY:
        return meant
    return f"{meant or ';'} there are {', '.join(names) or 'none'}"


def unknown_name(what: str, name: object, known: Iterable[str]) -> str:
    """The message for an unknown name.

    Args:
        what: kind of thing that is named, for example "setting of ppo".
        name: as it was given.
        known: the names there are.
    """
    return f"unknown {what} {name!r}{instead_of(name, known)}"
