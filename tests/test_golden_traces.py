"""What every environment does is what it did: short episodes against what was written down before.

What the native engine trains has the same bits on every machine: observations, rewards, infos and weights of whole
episodes have the committed digests. PyTorch rounds differently on other processors, and twelve mini-batches let that
grow, so all cases agree to 2 % with numbers that were written down before there were two engines.
"""

import json

import golden_traces
import numpy as np
import pytest

from qan_gym.core.engine import engine_here

TOLERANCE = {"rtol": 0.02, "atol": 0.02}
CHAOTIC = ("early-stopping",)  # a learning rate of 0.9: rounding grows to any size; only the length is compared
OVERFLOWS = ("diverges",)  # at 1e37 the order of a sum decides whether it is infinite, and so how soon the episode ends
NUMBERS = json.loads(golden_traces.FILE.read_text())
DIGESTS = json.loads(golden_traces.DIGESTS.read_text())
NATIVE_HERE = engine_here().startswith("native")


# Of the README's tests; the others are slow.
ORDINARY = ("lr", "adamw", "absolute", "continuous", "minibatch", "pull-one-over-c", "target-loss", "validate-every")


@pytest.mark.parametrize(
    "case",
    [case if case in ORDINARY else pytest.param(case, marks=pytest.mark.slow) for case in golden_traces.CASES],
)
def test_episodes_are_what_they_were(case):
    compared = 0
    for name, given in golden_traces.traces([case], golden_traces.KEPT):
        expected, found = NUMBERS[name], golden_traces.numbers(given)
        assert found.keys() == expected.keys()
        if NATIVE_HERE and case in OVERFLOWS:
            assert found["reward"][-1] == -10
            expected = {}
        for what, values in expected.items():
            assert len(found[what]) == len(values), f"{name}: {what}"
            if case not in CHAOTIC:
                np.testing.assert_allclose(found[what], values, err_msg=f"{name}: {what}", **TOLERANCE)
        if NATIVE_HERE and case in golden_traces.NATIVE:
            assert golden_traces.digest(given) == DIGESTS[name], name
        compared += 1
    assert compared == 2


def test_the_numbers_are_those_of_the_cases():
    assert {name.partition(",")[0] for name in NUMBERS} == set(golden_traces.CASES)
    assert {name.partition(",")[0] for name in DIGESTS} == set(golden_traces.NATIVE)
