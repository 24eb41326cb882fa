"""Checks of settings: what a field of a dataclass accepts stands beside its default, and is read by checks and docs.

@dataclass(frozen=True)
class Config:
    batch_size: int = setting(10, integer(at_least=1), "images of a mini-batch")

    def __post_init__(self) -> None:
        check_settings(self)
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from qan_gym.utils.names import did_you_mean

LARGEST_INTEGER = 2**31 - 1  # so that products of two are 64-bit integers
LARGEST_NUMBER = 3.4e38  # of a float32
LONGEST_SHOWN = 100  # characters of a value in a message

Bound = float | str | None  # a number, the name of another field, or none


@dataclass(frozen=True)
class Rule:
    """A check of one field.

    Attributes:
        allows: (value, the whole configuration) -> whether the value is accepted.
        wanted: (the whole configuration, or None for the docs) -> what is accepted, in words.
        bounds: the other fields that it reads; where one of them is wrong, the check is not made.
        known: () -> names that a wrong text may be a misspelling of.
    """

    allows: Callable[[Any, Any], bool]
    wanted: Callable[[Any], str]
    bounds: tuple[str, ...] = ()
    known: Callable[[], Iterable[str]] = tuple


def setting(default: Any, rule: Rule, about: str) -> Any:
    """A field of a configuration: its default, what it accepts, and what it means."""
    return field(default=default, metadata={"rule": rule, "about": about})


def check_settings(config: Any) -> None:
    """Check every field that was made by `setting`; NumPy's scalars among their values become Python's.

    Raises:
        ValueError: values are not accepted; the message names each such field, what is accepted, and the value.
    """
    wrong: dict[str, str] = {}
    checked = [one for one in fields(config) if "rule" in one.metadata]
    for one in checked:
        object.__setattr__(config, one.name, _plain_items(getattr(config, one.name)))
    for one in sorted(checked, key=lambda one: len(one.metadata["rule"].bounds) > 0):  # after the fields that it reads
        rule, value = one.metadata["rule"], getattr(config, one.name)
        if not wrong.keys() & set(rule.bounds) and not rule.allows(value, config):
            meant = did_you_mean(value, rule.known()) if isinstance(value, str) else ""
            wrong[one.name] = f"{one.name} must be {rule.wanted(config)}, not {shown(value)}{meant}"
    if wrong:
        raise ValueError("; ".join(wrong[one.name] for one in checked if one.name in wrong))


def plain(value: Any) -> Any:
    """A scalar of NumPy as Python's; a float32 as the number that it is printed as; anything else as it is."""
    if not isinstance(value, np.generic):
        return value
    if value.dtype.kind == "f":
        return float(str(value))  # 0.1, where float() makes 0.10000000149011612 of a float32
    return value.item() if value.dtype.kind in "biuU" else value


def _plain_items(value: Any) -> Any:
    """`plain`, also of the items of a list or tuple."""
    return type(value)(map(plain, value)) if type(value) in (list, tuple) else plain(value)


def shown(value: Any) -> str:
    """A value as messages show it: one line that is not too long."""
    try:
        line = " ".join(repr(value).split())
    except Exception:  # an object's own, or an integer of too many digits
        return f"a value of type {type(value).__name__}"
    return line if len(line) <= LONGEST_SHOWN else f"{line[: LONGEST_SHOWN - 3]}..."


def seed_of(value: Any) -> Any:
    """A seed as Gymnasium takes it, which refuses what is no integer of at least 0.

    Raises:
        ValueError: it is True or False, which Gymnasium takes for 1 and 0.
    """
    seed = plain(value)
    if isinstance(seed, bool):
        raise ValueError(f"seed must be an integer of at least 0 or None, not {seed}")
    return seed


def describe_settings(kind: Any) -> dict[str, tuple[str, str]]:
    """Accepted values and meaning, in words, of every field of a configuration class that was made by `setting`."""
    return {
        one.name: (one.metadata["rule"].wanted(None), one.metadata["about"])
        for one in fields(kind)
        if "rule" in one.metadata
    }


# --- rules ----------------------------------------------------------------------------------------------------------


def text() -> Rule:
    """Any string."""
    return Rule(lambda value, _: isinstance(value, str), lambda _: "text")


def flag() -> Rule:
    """True or False."""
    return Rule(lambda value, _: isinstance(value, bool), lambda _: "True or False")


def one_of(*options: Any) -> Rule:
    """One of some strings, or None where that is among them."""
    return Rule(
        lambda value, _: isinstance(value, str | None) and value in options,
        lambda _: f"one of {', '.join(map(str, options))}",
        known=lambda: [option for option in options if isinstance(option, str)],
    )


def registered(registry: Mapping[str, Any]) -> Rule:
    """A name in a registry, as it stands when the check is made."""
    return Rule(
        lambda value, _: isinstance(value, str) and value in registry,
        lambda _: f"one of {', '.join(registry)}",
        known=lambda: registry,
    )


def integer(at_least: int, at_most: str | None = None) -> Rule:
    """A whole number below 2**31, not a bool, and at most another field that is named."""

    def allows(value: Any, config: Any) -> bool:
        if not isinstance(value, int) or isinstance(value, bool) or not at_least <= value <= LARGEST_INTEGER:
            return False
        return at_most is None or value <= getattr(config, at_most)

    def wanted(config: Any) -> str:
        most = "below 2**31" if at_most is None else f"at most {_bound(at_most, config)}"
        return f"an integer of at least {at_least}, {most}"

    return Rule(allows, wanted, () if at_most is None else (at_most,))


def number(*, at_least: Bound = None, above: Bound = None, at_most: Bound = None, below: Bound = None) -> Rule:
    """A number that a float32 can hold, within bounds, each a number or the name of another field."""
    bounds = (at_least, above, at_most, below)

    def allows(value: Any, config: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= LARGEST_NUMBER:
            return False
        low, over, high, under = (getattr(config, one) if isinstance(one, str) else one for one in bounds)
        return (
            (low is None or value >= low)
            and (over is None or value > over)
            and (high is None or value <= high)
            and (under is None or value < under)
        )

    def wanted(config: Any) -> str:
        low, over, high, under = (_bound(one, config) for one in bounds)
        if high is None and under is None:
            least = f"above {over}" if low is None else f"of at least {low}"
            return f"a number {least}, at most {LARGEST_NUMBER}"
        opened = f"[{low}" if low is not None else f"({over}"
        return f"a number in {opened}, {f'{high}]' if high is not None else f'{under})'}"

    return Rule(allows, wanted, tuple(one for one in bounds if isinstance(one, str)))


def _bound(bound: Bound, config: Any) -> Bound:
    """A bound in words: a number; of another field its name, and its value where there is a configuration."""
    return f"{getattr(config, bound)} ({bound})" if isinstance(bound, str) and config is not None else bound


def optional(rule: Rule) -> Rule:
    """None, or any value that another rule accepts."""
    return either(Rule(lambda value, _: value is None, lambda _: "None"), rule)


def either(*rules: Rule) -> Rule:
    """Any value that one of some rules accepts."""

    def wanted(config: Any) -> str:
        *others, last = (rule.wanted(config) for rule in rules)
        return f"{', '.join(others)} or {last}"

    bounds = tuple(bound for rule in rules for bound in rule.bounds)
    return Rule(
        lambda value, config: any(rule.allows(value, config) for rule in rules),
        wanted,
        bounds,
        lambda: [name for rule in rules for name in rule.known()],
    )


def exactly(value: str) -> Rule:
    """One string."""
    return Rule(
        lambda given, _: isinstance(given, str) and given == value, lambda _: repr(value), known=lambda: [value]
    )


def list_of(rule: Rule, what: str) -> Rule:
    """A list or tuple, not empty, of values that another rule accepts."""
    return Rule(
        lambda value, config: (
            isinstance(value, list | tuple) and len(value) > 0 and all(rule.allows(one, config) for one in value)
        ),
        lambda _: f"a list of {what}",
        rule.bounds,
    )
