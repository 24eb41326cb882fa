"""Checks of settings: what a field of a dataclass accepts stands beside its default, and is read by checks and docs.

@dataclass(frozen=True)
class Config:
    batch_size: int = setting(10, integer(at_least=1), "images of a mini-batch")

    def __post_init__(self) -> None:
        check_settings(self)
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

Bound = float | str | None  # a number, the name of another field, or none


@dataclass(frozen=True)
class Rule:
    """A check of one field.

    Attributes:
        allows: (value, the whole configuration) -> whether the value is accepted.
        wanted: (the whole configuration, or None for the docs) -> what is accepted, in words.
    """

    allows: Callable[[Any, Any], bool]
    wanted: Callable[[Any], str]


def setting(default: Any, rule: Rule, about: str) -> Any:
    """A field of a configuration: its default, what it accepts, and what it means."""
    return field(default=default, metadata={"rule": rule, "about": about})


def check_settings(config: Any) -> None:
    """Check every field that was made by `setting`.

    Raises:
        ValueError: a value is not accepted; the message names the field, what is accepted, and the value.
    """
    for one in fields(config):
        rule, value = one.metadata.get("rule"), getattr(config, one.name)
        if rule is not None and not rule.allows(value, config):
            raise ValueError(f"{one.name} must be {rule.wanted(config)}, not {value!r}")


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
    )


def registered(registry: Mapping[str, Any]) -> Rule:
    """A name in a registry, as it stands when the check is made."""
    return Rule(
        lambda value, _: isinstance(value, str) and value in registry,
        lambda _: f"one of {', '.join(registry)}",
    )


def integer(at_least: int) -> Rule:
    """A whole number, not a bool."""
    return Rule(
        lambda value, _: isinstance(value, int) and not isinstance(value, bool) and value >= at_least,
        lambda _: f"an integer of at least {at_least}",
    )


def number(*, at_least: Bound = None, above: Bound = None, at_most: Bound = None, below: Bound = None) -> Rule:
    """A finite number within bounds, each a number or the name of another field."""

    def allows(value: Any, config: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            return False
        low, over, high, under = (_bound(bound, config) for bound in (at_least, above, at_most, below))
        return (
            (low is None or value >= low)
            and (over is None or value > over)
            and (high is None or value <= high)
            and (under is None or value < under)
        )

    def wanted(config: Any) -> str:
        low, over, high, under = (
            bound if config is None else _bound(bound, config) for bound in (at_least, above, at_most, below)
        )
        if high is None and under is None:
            return f"a number above {over}" if low is None else f"a number of at least {low}"
        opened = f"[{low}" if low is not None else f"({over}"
        return f"a number in {opened}, {f'{high}]' if high is not None else f'{under})'}"

    return Rule(allows, wanted)


def _bound(bound: Bound, config: Any) -> Any:
    return getattr(config, bound) if isinstance(bound, str) else bound


def optional(rule: Rule) -> Rule:
    """None, or any value that another rule accepts."""
    return either(Rule(lambda value, _: value is None, lambda _: "None"), rule)


def either(*rules: Rule) -> Rule:
    """Any value that one of some rules accepts."""

    def wanted(config: Any) -> str:
        *others, last = (rule.wanted(config) for rule in rules)
        return f"{', '.join(others)} or {last}"

    return Rule(lambda value, config: any(rule.allows(value, config) for rule in rules), wanted)


def exactly(value: str) -> Rule:
    """One string."""
    return Rule(lambda given, _: isinstance(given, str) and given == value, lambda _: repr(value))


def list_of(rule: Rule, what: str) -> Rule:
    """A list or tuple, not empty, of values that another rule accepts."""
    return Rule(
        lambda value, config: (
            isinstance(value, list | tuple) and len(value) > 0 and all(rule.allows(one, config) for one in value)
        ),
        lambda _: f"a list of {what}",
    )
