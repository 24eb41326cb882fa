"""Checks of settings: each rule's accepted and refused values, and messages with field, range and value."""

import math
import re
from dataclasses import dataclass, field, fields, make_dataclass

import numpy as np
import pytest

from qan_gym.config import TaskConfig
from qan_gym.utils.validation import (
    Rule,
    check_settings,
    describe_settings,
    either,
    exactly,
    flag,
    integer,
    list_of,
    number,
    one_of,
    optional,
    registered,
    setting,
    shown,
    text,
)

NAN, INF = math.nan, math.inf
BELOW, AT_MOST = ", below 2**31", ", at most 3.4e+38"
REGISTRY = {"first": 1, "second": 2}

# name -> (rule, what it accepts in words, accepted values, refused values)
RULES = {
    "text": (text(), "text", ["", "word", "two words"], [None, 1, b"word", ["word"], True]),
    "flag": (flag(), "True or False", [True, False], [0, 1, None, "True", 1.0]),
    "one of": (one_of("a", "b"), "one of a, b", ["a", "b"], ["c", "", None, 0, ["a"], "A"]),
    "one of, or None": (one_of(None, "a"), "one of None, a", [None, "a"], ["None", 0, False, ["a"]]),
    "registered": (registered(REGISTRY), "one of first, second", ["first", "second"], ["third", None, 1, ["first"]]),
    "integer": (
        integer(at_least=1),
        f"an integer of at least 1{BELOW}",
        [1, 2, 2**31 - 1, np.int64(3), np.uint8(1)],
        [0, -1, 1.0, True, "1", None, NAN, 2**31, 10**200],
    ),
    "integer from 0": (integer(at_least=0), f"an integer of at least 0{BELOW}", [0, 7], [-1, False, True, 0.0]),
    "at least": (
        number(at_least=0),
        f"a number of at least 0{AT_MOST}",
        [0, 0.0, 1, 1e38, np.float32(0.5), np.int64(2)],
        [-1e-9, INF, NAN, "0", None, True, 1e39, 10**400],
    ),
    "above": (number(above=0), f"a number above 0{AT_MOST}", [1e-300, 1, 2.5], [0, 0.0, -1, INF, NAN, True, [1]]),
    "closed": (number(at_least=0, at_most=1), "a number in [0, 1]", [0, 1, 0.5], [-0.1, 1.1, NAN, -INF, "1", False]),
    "half open above": (number(at_least=0, below=1), "a number in [0, 1)", [0, 0.999], [1, 1.0, -1, NAN, None]),
    "half open below": (number(above=0, at_most=1), "a number in (0, 1]", [1, 0.001], [0, 1.5, NAN, None]),
    "open": (number(above=-1, below=1), "a number in (-1, 1)", [0, -0.5], [-1, 1, INF]),
    "optional": (
        optional(integer(at_least=1)),
        f"None or an integer of at least 1{BELOW}",
        [None, 1],
        [0, "None", True, 1.5],
    ),
    "exactly": (exactly("word"), "'word'", ["word"], ["other", None, 1, ["word"], ""]),
    "either": (
        either(number(above=0), exactly("auto")),
        f"a number above 0{AT_MOST} or 'auto'",
        [1, "auto"],
        [0, "other", None],
    ),
    "either of three": (
        either(exactly("a"), flag(), integer(at_least=5)),
        f"'a', True or False or an integer of at least 5{BELOW}",
        ["a", True, 5],
        ["b", 4, None],
    ),
    "list": (list_of(text(), "words"), "a list of words", [["a"], ("a", "b")], [[], (), "a", ["a", 1], None, {"a"}]),
    "list of numbers": (
        list_of(number(at_least=0), "lengths"),
        "a list of lengths",
        [[0, 1.5], (2,)],
        [[-1], [NAN], [None], [True]],
    ),
}


def config_of(rule: Rule, value):
    """A configuration with one field, `size`, that has a value."""
    return make_dataclass("Config", [("size", object, setting(None, rule, "a field"))], frozen=True)(value)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, rule in RULES.items() for value in rule[2]])
def test_accepted(name, value):
    check_settings(config_of(RULES[name][0], value))


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, rule in RULES.items() for value in rule[3]])
def test_refused(name, value):
    """The message names the field, what is accepted, and the value."""
    rule, words, _, _ = RULES[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole message is compared)
        check_settings(config_of(rule, value))
    assert str(caught.value) == f"size must be {words}, not {shown(value)}"


@pytest.mark.parametrize("name", list(RULES))
def test_description_of_a_rule(name):
    """The same words as in messages."""
    rule, words, (value, *_), _ = RULES[name]
    assert describe_settings(type(config_of(rule, value))) == {"size": (words, "a field")}


def test_a_registry_is_read_when_the_check_is_made():
    registry = {"first": 1}
    rule = registered(registry)
    with pytest.raises(ValueError, match="size must be one of first, not 'later'"):
        check_settings(config_of(rule, "later"))
    registry["later"] = 2
    check_settings(config_of(rule, "later"))
    assert describe_settings(type(config_of(rule, "later")))["size"][0] == "one of first, later"


# --- several fields -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """Fields whose bounds are other fields."""

    low: float = setting(0.0, number(at_least=0), "the least value")
    high: float = setting(1.0, number(at_least="low"), "the largest value")
    value: float = setting(0.5, number(at_least="low", at_most="high"), "the value")
    inside: float = setting(0.5, number(above="low", below="high"), "a value inside")
    other: object = field(default=None)

    def __post_init__(self) -> None:
        check_settings(self)


@pytest.mark.parametrize(
    "values",
    [{}, {"value": 0.0}, {"value": 1.0}, {"low": 0.2, "high": 5, "value": 3, "inside": 4}, {"other": object()}],
)
def test_values_within_bounds_that_are_fields(values):
    Range(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"low": -1}, f"low must be a number of at least 0{AT_MOST}, not -1"),
        ({"low": 2}, f"high must be a number of at least 2 (low){AT_MOST}, not 1.0"),
        ({"high": -0.5}, f"high must be a number of at least 0.0 (low){AT_MOST}, not -0.5"),
        ({"value": 1.5}, "value must be a number in [0.0 (low), 1.0 (high)], not 1.5"),
        ({"low": 0.4, "value": 0.3}, "value must be a number in [0.4 (low), 1.0 (high)], not 0.3"),
        ({"inside": 0.0}, "inside must be a number in (0.0 (low), 1.0 (high)), not 0.0"),
        ({"high": 0.5}, "inside must be a number in (0.0 (low), 0.5 (high)), not 0.5"),
        ({"low": "0"}, f"low must be a number of at least 0{AT_MOST}, not '0'"),
        ({"low": 1e308}, f"low must be a number of at least 0{AT_MOST}, not 1e+308"),
    ],
)
def test_values_outside_bounds_that_are_fields(values, message):
    """The message has the names and values of the bounds; what is compared with a wrong one is not blamed."""
    with pytest.raises(ValueError, match="^" + re.escape(message).replace(r"\.\*", ".*") + "$"):
        Range(**values)


@pytest.mark.parametrize(
    ("values", "meant"),
    [
        ({"schedule": "constan"}, "not 'constan': did you mean 'constant'?"),
        ({"augment": "reflekt"}, "not 'reflekt': did you mean 'reflect'?"),
        ({"observation": "scren"}, "not 'scren': did you mean 'screen'?"),
        ({"meta_momentum": "filter-regresion"}, "did you mean 'filter-regression'?"),
        ({"precision": "xyz"}, "not 'xyz'"),
        ({"precision": ["bf16"]}, "not ['bf16']"),
    ],
)
def test_what_was_probably_meant(values, meant):
    with pytest.raises(ValueError, match=f"{re.escape(meant)}$"):
        TaskConfig(**values)


def test_every_wrong_field_is_named():
    with pytest.raises(ValueError, match=r"^momentum must be [^;]*, not 2; epochs must be [^;]*, not 0$"):
        TaskConfig(momentum=2, epochs=0, pull_epochs=0)


def test_scalars_of_numpy_become_pythons():
    """A float32 is the number that it is printed as, in lists too."""
    config = TaskConfig(
        learning_rate=np.float32(0.005),
        momentum=np.float16(0.5),
        batch_size=np.int32(7),
        nesterov=np.bool_(True),
        network=np.str_("mnist-cnn"),
        observation=[np.str_("log_loss")],
    )
    assert config == TaskConfig(
        learning_rate=0.005, momentum=0.5, batch_size=7, nesterov=True, observation=("log_loss",)
    )
    values = (config.learning_rate, config.momentum, config.batch_size, config.nesterov, config.network)
    assert [type(value) for value in (*values, *config.observation)] == [float, float, int, bool, str, str]


@pytest.mark.parametrize("value", [np.datetime64(1, "s"), np.timedelta64(1, "s"), np.array(1), np.complex64(1)])
def test_other_values_of_numpy_are_refused(value):
    with pytest.raises(ValueError, match="epochs must be an integer"):
        TaskConfig(epochs=value)


def test_values_are_shown_in_one_line():
    class Bad:
        def __repr__(self):
            raise RuntimeError

    assert shown(np.arange(1000)).count("\n") == 0
    assert len(shown("x" * 1000)) == 100
    assert shown(10**10_000) == "a value of type int"
    assert shown(Bad()) == "a value of type Bad"


def test_descriptions_name_the_fields_that_are_bounds():
    """In the order of the fields; without those that have no rule."""
    assert describe_settings(Range) == {
        "low": (f"a number of at least 0{AT_MOST}", "the least value"),
        "high": (f"a number of at least low{AT_MOST}", "the largest value"),
        "value": ("a number in [low, high]", "the value"),
        "inside": ("a number in (low, high)", "a value inside"),
    }


def test_a_setting_has_its_default():
    assert (Range().low, Range().high, Range().value, Range().other) == (0.0, 1.0, 0.5, None)


# --- the configuration of a task ------------------------------------------------------------------------------------


def test_every_field_of_a_task_is_described():
    described = describe_settings(TaskConfig)
    assert list(described) == [one.name for one in fields(TaskConfig)]
    assert all(accepted and about for accepted, about in described.values())
    assert described["learning_rate"] == (
        "a number in [learning_rate_min, learning_rate_max]",
        "at the start of an episode",
    )
    assert described["meta_momentum"][0] == "None or a number in [0, 1] or 'filter-regression'"


def test_the_defaults_of_a_task_are_accepted():
    check_settings(TaskConfig())


def test_a_list_of_features_becomes_a_tuple():
    assert TaskConfig(observation=["log_loss", "budget_used"]).observation == ("log_loss", "budget_used")
