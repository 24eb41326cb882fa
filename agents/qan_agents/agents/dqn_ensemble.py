"""An ensemble of bundled DQNs on top of a schedule as the agent of a run, on the device of its environment."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from qan_agents.agents.dqn_native import NativeDQN
from qan_agents.dqn.ensemble import Ensemble
from qan_agents.dqn.presets import PRESETS, make_ensemble_config
from qan_agents.dqn.values import GreedyPolicy
from qan_agents.dqn.vector_env import BudgetEndTerminates
from qan_agents.experiments.agent import AgentSpec, register_agent
from qan_agents.few_actions import few_actions
from qan_gym.config import TaskConfig

SCHEDULE = "one-cycle"  # under its actions, unless the user says otherwise
ACTIONS = 10  # of an episode
CAUTION = 1.0  # found on other data, as the schedule was: studies/base_schedule, studies/agent_on_one_cycle
# Where the actions do not set the learning rate. 20 trainings have some 50 rounds of updates, after which target
# networks that follow by the preset's 0.005 would still be near what they began with (studies/longtail_first_command).
TAU = 0.2


class EnsembleDQN(NativeDQN):
    """DQNs that play in turn, learn from all episodes, and leave a schedule only for what most of them find better.

    It learns from whole returns, up to the end of the budget, after which nothing is expected.
    """

    presets = ("control", *(name for name in PRESETS if name != "control"))
    rows = 4

    @classmethod
    def check(cls, preset: str, hyperparameters: dict[str, Any]) -> None:
        """See `Agent.check`."""
        make_ensemble_config(preset, 1, hyperparameters)

    @classmethod
    def env_defaults(cls, config: TaskConfig, batches: int | None, given: Mapping[str, Any]) -> dict[str, Any]:
        """See `Agent.env_defaults`: few long actions on top of a schedule, paid by the drop in the validation loss."""
        if batches is None:
            return {}
        length = given.get("batches_per_action", max(1, batches // ACTIONS))
        return few_actions(config, length, SCHEDULE, validate_every=length, keep_game="game" in given)

    def _make_env(self, spec: AgentSpec) -> VectorEnv[Any, Any, Any]:
        return BudgetEndTerminates(super()._make_env(spec))

    def _fresh(self, spec: AgentSpec, steps: int) -> Ensemble:
        own = {"n_step": self.facts.episode_length, "caution": CAUTION}
        if "learning_rate" not in self.training.parts.game.hyperparameters:
            own["tau"] = TAU
        given = own | spec.hyperparameters
        config = make_ensemble_config(spec.preset, steps, given, self.interface.score_line > 0)
        return Ensemble(config, self.interface, str(self.device), spec.seed)

    def policy(self) -> "CautiousPolicy":
        """See `Agent.policy`."""
        parts = self.training.parts
        assert isinstance(self.agent, Ensemble)
        return CautiousPolicy(self.agent, parts.game.no_op(parts.config))

    def load(self, path: Path) -> None:
        """See `Agent.load`."""
        assert isinstance(self.agent, Ensemble)
        self.agent.load(path)


class CautiousPolicy(GreedyPolicy):
    """A `Policy` that leaves things as they are where an ensemble is not sure enough that another action is better."""

    def __init__(self, ensemble: Ensemble, no_op: int | None) -> None:
        """ensemble: to follow; no_op: the action that leaves things as they are, where there is one."""
        super().__init__(ensemble)
        self.ensemble, self.no_op = ensemble, no_op

    def act(self, observation: NDArray[Any], info: dict[str, Any]) -> int:
        """See `Policy.act`; observation: (history, D)."""
        return int(self.ensemble.choose(self.batch_of(observation), self.no_op)[0])

    def values(self, observation: NDArray[Any]) -> NDArray[np.float32]:
        """Q(s, a), (actions,), mean of the members', of an observation (history, D)."""
        values: NDArray[np.float32] = self.ensemble.target_values(self.batch_of(observation))[0].cpu().numpy()
        return values


register_agent("dqn-ensemble", EnsembleDQN)
