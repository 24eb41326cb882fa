"""The hyperparameters of the bundled PPO."""

from dataclasses import dataclass

from qan_agents.dqn.config import layer_sizes
from qan_agents.ppo.network import ACTIVATIONS
from qan_gym.utils.validation import (
    check_settings,
    flag,
    integer,
    number,
    one_of,
    optional,
    registered,
    setting,
    text,
)


@dataclass(frozen=True)
class PPOConfig:
    """The hyperparameters of a PPO.

    A round is `steps_per_round` steps of every row and the updates that learn from them: `epochs` times the same steps,
    in random order, in `minibatches` updates. Of a recurrent policy a minibatch is whole rows: gradients go back to the
    first step of the round, and the rows must be as many as the minibatches at least.

    Raises:
        ValueError: a value is out of its range; the message names the field, the range and the value.
    """

    # The networks: one for the policy, one for the value, of the same sizes.
    features: str = setting(
        "flat",
        one_of("flat", "score-line", "scores"),
        "what the networks see of a frame: 'flat', all of it; 'score-line' and 'scores' read the score line",
    )
    hidden: tuple[int, ...] = setting((64, 64), layer_sizes(), "units of the hidden layers")
    activation: str = setting("tanh", registered(ACTIVATIONS), "of the hidden layers")
    recurrent: int = setting(0, integer(at_least=0), "units of a GRU behind the hidden layers; 0: none")
    by_class: bool = setting(
        False,
        flag(),
        "whether one network gives the output for each class, from the features of that class, their means over the "
        "classes, and the features of no class",
    )
    privileged: str | None = setting(
        None, optional(text()), "the entry of the environment's infos that the value network also sees; None: none"
    )
    initial_log_std: float = setting(
        0.0, number(at_least=-20, at_most=2), "ln of the first standard deviation of Box actions, the box being [-1, 1]"
    )
    learn_std: bool = setting(True, flag(), "whether the standard deviation is learned; it depends on no observation")
    final_log_std: float | None = setting(
        None,
        optional(number(at_least=-20, at_most=2)),
        "where it is not learned: ln of the standard deviation after `anneal_steps`, reached linearly; None: it stays",
    )
    normalise_observations: bool = setting(
        True, flag(), "whether observations and privileged inputs are scaled to mean 0 and variance 1 of all so far"
    )
    observation_clip: float = setting(10.0, number(above=0), "largest absolute value of what was so scaled")

    # A round.
    steps_per_round: int = setting(128, integer(at_least=1), "steps of every row in a round")
    gamma: float = setting(0.99, number(at_least=0, at_most=1), "discount per step")
    gae_lambda: float = setting(
        0.95, number(at_least=0, at_most=1), "decay of the TD errors in an advantage; 0: one step, 1: the whole return"
    )

    group: int = setting(
        1,
        integer(at_least=1),
        "rows in succession that play the same task from the same start; the mean of their advantages at a step is "
        "taken off them; 1: nothing is",
    )

    # The updates.
    epochs: int = setting(4, integer(at_least=1), "passes over the steps of a round")
    minibatches: int = setting(4, integer(at_least=1), "updates of a pass")
    normalise_advantages: bool = setting(
        True, flag(), "whether the advantages of a minibatch are scaled to mean 0 and variance 1"
    )
    advantage_clip: float | None = setting(
        None, optional(number(above=0)), "largest absolute value of an advantage that was so scaled; None: no limit"
    )
    clip: float = setting(0.2, number(above=0), "change of an action's probability ratio from 1 that still pays")
    value_coefficient: float = setting(0.5, number(at_least=0), "weight of the value's mean squared error in the loss")
    entropy_coefficient: float = setting(0.0, number(at_least=0), "weight of the policy's entropy in the loss")
    target_kl: float | None = setting(
        None,
        optional(number(above=0)),
        "KL divergence from the policy that played, beyond which a round's other updates are left out; None: none",
    )
    learning_rate: float = setting(3e-4, number(above=0), "of Adam")
    anneal_steps: int | None = setting(
        None, optional(integer(at_least=1)), "steps over which the learning rate falls linearly to 0; None: it stays"
    )
    optimizer_epsilon: float = setting(1e-5, number(above=0), "added to the denominator of Adam's step")
    max_grad_norm: float | None = setting(
        0.5, optional(number(above=0)), "largest norm of the gradient, longer ones are scaled to it; None: no limit"
    )

    def __post_init__(self) -> None:
        """Check every field and what goes together; the list of hidden layers becomes a tuple."""
        check_settings(self)
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if self.by_class and (self.recurrent or self.features != "flat"):
            raise ValueError("by_class needs recurrent=0 and features='flat'")
        if self.advantage_clip is not None and not self.normalise_advantages:
            raise ValueError("advantage_clip needs normalise_advantages")
        if self.final_log_std is not None and (self.learn_std or self.anneal_steps is None):
            raise ValueError("final_log_std needs learn_std=False and anneal_steps")

    def log_std(self, steps: int) -> float:
        """ln of the standard deviation after some steps, where it is not learned."""
        if self.final_log_std is None or self.anneal_steps is None:
            return self.initial_log_std
        share = min(1.0, steps / self.anneal_steps)
        return self.initial_log_std + share * (self.final_log_std - self.initial_log_std)

    def check_rows(self, num_envs: int) -> None:
        """Refuse numbers of rows that a round cannot be learned from.

        Raises:
            ValueError: a recurrent policy has fewer rows than minibatches, a round fewer steps, or a group has not
                all its rows.
        """
        if num_envs % self.group != 0:
            raise ValueError(f"group must divide the number of environments, {num_envs}; {self.group} does not")
        if self.recurrent and num_envs < self.minibatches:
            raise ValueError(
                f"minibatches must be at most the number of environments, {num_envs}, not {self.minibatches}: a "
                "recurrent policy learns from whole rows"
            )
        if num_envs * self.steps_per_round < self.minibatches:
            raise ValueError(
                f"minibatches must be at most the steps of a round, {num_envs} x {self.steps_per_round}, not "
                f"{self.minibatches}"
            )
