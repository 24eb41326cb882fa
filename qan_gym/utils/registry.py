"""Names under which parts are found, by which others add their own."""

from collections.abc import Container
from typing import Any, TypeVar

T = TypeVar("T")


def add(registry: dict[str, T], what: str, name: str, value: T, part: Any = None, taken: Container[str] = ()) -> None:
    """Put a value into a registry under a new name.

    Args:
        registry: name -> value.
        what: it is, with its article: "a network".
        name: text that is not empty.
        value: what is found under the name.
        part: a function or class that must be callable; None: the value must.
        taken: further names that are not free.

    Raises:
        ValueError: the name is taken or is none, or what must be callable is not.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"{what} is registered under a name, not {name!r}")
    if name in registry or name in taken:
        raise ValueError(f"{what} cannot be registered as {name!r}: the name is taken")
    called = value if part is None else part
    if not callable(called):
        raise ValueError(f"{what} cannot be registered as {name!r}: it must be something to call, not {called!r}")
    registry[name] = value
