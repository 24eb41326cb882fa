"""Rules that set the learning rate from the training loss: torch's reduce on plateau, and GreedyLR.

Both see the mean training loss since the last of their 25 decisions, and decide for many trainings at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from qan_agents.controllers.trainings import Float64, Outcomes, Rule, play_rules
from qan_agents.judging.methods import RATES, Places, Range, Settings, each
from qan_agents.judging.problems import Trainings
from qan_agents.policies.loss_rules import Greedy, Plateau

RULES: dict[str, Callable[[Float64, Float64, Float64], Rule]] = {"plateau": Plateau, "greedy": Greedy}
FACTORS = {"plateau": Range(0.1, 0.7), "greedy": Range(0.5, 0.95)}


@dataclass(frozen=True)
class Ruled:
    """A rule of RULES."""

    optimizer: str
    rule: str
    slow: ClassVar[bool] = False

    @property
    def ranges(self) -> dict[str, Range]:
        """The first learning rate, the factor, and the patience in decisions."""
        rate = Range(*RATES[self.optimizer], log=True)
        return {"learning_rate": rate, "factor": FACTORS[self.rule], "patience": Range(0, 5, whole=True)}

    def play(self, trainings: Trainings, settings: Settings, *, tests: bool) -> Outcomes:
        """See `Method.play`."""
        rates, factors, patience = (
            each(settings[name], len(trainings)) for name in ("learning_rate", "factor", "patience")
        )

        def begin(places: Places) -> Rule:
            return RULES[self.rule](rates[places], factors[places], patience[places])

        return play_rules(trainings.tasks, trainings.seeds, begin, tests=tests, dataset=trainings.dataset)
