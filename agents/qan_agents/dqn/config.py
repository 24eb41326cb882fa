"""The hyperparameters of the bundled DQN."""

from dataclasses import dataclass, fields
from typing import Any

import torch

from qan_agents.dqn.features import FEATURES
from qan_gym.utils.validation import (
    Rule,
    check_settings,
    flag,
    integer,
    number,
    one_of,
    optional,
    registered,
    setting,
)

STORAGE = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8}


def layer_sizes() -> Rule:
    """A list of numbers of units, which may be empty."""
    units = integer(at_least=1)

    def allows(value: Any, config: Any) -> bool:
        return isinstance(value, list | tuple) and all(units.allows(one, config) for one in value)

    return Rule(allows, lambda _: "a list of integers of at least 1")


@dataclass(frozen=True)
class DQNConfig:
    """The hyperparameters of a DQN.

    "Steps" are steps of single environments: one step of a vector environment of N counts as N. The updates that are
    due after it draw their transitions together, up to 32 updates at a time, and their priorities change together.

    Raises:
        ValueError: a value is out of its range; the message names the field, the range and the value.
    """

    # The network.
    history: int = setting(1, integer(at_least=1), "frames of an observation: the last ones")
    features: str = setting(
        "flat",
        registered(FEATURES),
        "the first layer: 'flat' hands the frames on; 'filters' is the paper's convolution of the screen; 'score-line' "
        "and 'scores' read the score line",
    )
    hidden: tuple[int, ...] = setting((64, 64), layer_sizes(), "units of the hidden layers after the features")
    layer_norm: bool = setting(False, flag(), "layer normalisation after each hidden layer")
    dueling: bool = setting(False, flag(), "separate last layers for the state's value and the actions' advantages")
    quantiles: int = setting(1, integer(at_least=1), "quantiles of the return that are learned; 1: its mean")

    # The target of an update.
    double: bool = setting(
        False, flag(), "double DQN: the online network chooses the action that the target network values"
    )
    gamma: float = setting(0.99, number(at_least=0, at_most=1), "discount per step")
    n_step: int = setting(1, integer(at_least=1), "rewards that are summed before the target network's value")
    target_update_interval: int = setting(500, integer(at_least=1), "steps between updates of the target network")
    tau: float = setting(
        1.0, number(above=0, at_most=1), "share by which an update moves the target network towards the online network"
    )

    # The update.
    clip_td_error: float | None = setting(
        1.0, optional(number(above=0)), "threshold of the Huber loss; None: the squared error, not with quantiles"
    )
    optimizer: str = setting("adam", one_of("adam", "rmsprop"), "'rmsprop' is that of DeepMind's DQN")
    learning_rate: float = setting(1e-3, number(above=0), "of the optimizer")
    optimizer_epsilon: float = setting(1e-8, number(above=0), "added to the denominator of the optimizer's step")
    max_grad_norm: float | None = setting(
        10.0, optional(number(above=0)), "largest norm of the gradient, longer ones are scaled to it; None: no limit"
    )
    batch_size: int = setting(64, integer(at_least=1), "transitions of an update")
    update_every: int = setting(1, integer(at_least=1), "steps from one round of updates to the next")
    gradient_steps: int = setting(1, integer(at_least=1), "updates of such a round")
    learning_starts: int = setting(1_000, integer(at_least=0), "steps before the first update; all actions are random")

    # The replay.
    buffer_size: int = setting(100_000, integer(at_least=1), "transitions that the replay holds")
    storage: str = setting(
        "float32", registered(STORAGE), "data type of its frames; 'uint8' where the environment's frames are bytes"
    )
    priority_exponent: float = setting(
        0.0, number(at_least=0, at_most=1), "exponent of the TD errors in the probability of a draw; 0: uniform draws"
    )
    importance_initial: float = setting(
        0.4, number(at_least=0, at_most=1), "first exponent of the importance-sampling weights, which rises to 1"
    )
    importance_steps: int = setting(50_000, integer(at_least=1), "steps of that rise")

    # Exploration.
    exploration_initial: float = setting(1.0, number(at_least=0, at_most=1), "first share of random actions")
    exploration_final: float = setting(0.05, number(at_least=0, at_most=1), "last share of random actions")
    exploration_steps: int = setting(10_000, integer(at_least=1), "steps from the first share to the last")

    def __post_init__(self) -> None:
        """Check every field and what goes together; the list of hidden layers becomes a tuple."""
        check_settings(self)
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if self.quantiles > 1 and self.clip_td_error is None:
            raise ValueError("quantiles need clip_td_error: it is the threshold of their Huber loss")


@dataclass(frozen=True)
class EnsembleConfig(DQNConfig):
    """The hyperparameters of an ensemble of DQNs: those of every member, and how they act together.

    Raises:
        ValueError: a value is out of its range; the message names the field, the range and the value.
    """

    members: int = setting(4, integer(at_least=2), "DQNs, which play in turn and learn from all episodes")
    caution: float = setting(
        0.5,
        number(at_least=0),
        "by how many standard deviations of the members' values an action must be better than the one that changes "
        "nothing",
    )

    @property
    def of_member(self) -> DQNConfig:
        """Those of every member."""
        return DQNConfig(**{one.name: getattr(self, one.name) for one in fields(DQNConfig)})
