"""Names that are not among those there are: a message that says which one was probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def instead_of(name: object, known: Iterable[str]) -> str:
    """The nearest name that there is, and all of them; goes behind a message that names the wrong one."""
    names = list(known)
    nearest = get_close_matches(str(name), names, n=1)
    meant = f": did you mean {nearest[0]!r}?" if nearest else ";"
    return f"{meant} there are {', '.join(names)}" if names else "; there is none"


def unknown_name(what: str, name: object, known: Iterable[str]) -> str:
    """The message for an unknown name.

    Args:
        what: kind of thing that is named, for example "setting of ppo".
        name: as it was given.
        known: the names there are.
    """
    return f"unknown {what} {name!r}{instead_of(name, known)}"
