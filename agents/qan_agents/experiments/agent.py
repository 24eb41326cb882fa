"""The interface of an agent that a run can train, and the registry of agents.

An agent is a subclass of `Agent`. Those in the folder `qan_agents/agents` are found by the name of their file; others
are registered with `register_agent`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, ClassVar, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

import qan_agents
from qan_agents.policies.fixed import Policy
from qan_agents.policies.rollout import Episode
from qan_gym.config import TaskConfig
from qan_gym.core.training import Training
from qan_gym.env import QanEnv
from qan_gym.utils.names import unknown_name
from qan_gym.utils.registry import add
from qan_gym.vector_env import QanVectorEnv

Arrays = dict[str, NDArray[Any]]  # of an episode, see `Episode.arrays`


@dataclass(frozen=True)
class EnvFacts:
    """The environment of a run, as the record of the run has it.

    Attributes:
        task: its configuration.
        fingerprint: SHA-256 of its data.
        episode_length: actions of an episode that spends its budget.
        action_names: of a Discrete action space; empty for the others.
    """

    task: TaskConfig
    fingerprint: str
    episode_length: int
    action_names: tuple[str, ...]

    @classmethod
    def of(cls, training: Training) -> "EnvFacts":
        """The facts of an environment."""
        parts = training.parts
        names = parts.game.action_names(parts.config, parts.n_classes)
        return cls(parts.config, parts.fingerprint, parts.episode_length, tuple(names))


def training_of(env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> Training:
    """The training runs that an environment is played on, wrapped or not.

    Raises:
        ValueError: it is not one of qan-gym's.
    """
    made = env.unwrapped
    if not isinstance(made, QanEnv | QanVectorEnv):
        raise ValueError(f"agents of a run play the environments of qan-gym, not {made}")
    return made.training


@dataclass(frozen=True)
class AgentSpec:
    """The arguments of an agent.

    Attributes:
        env: the id of its environment.
        env_kwargs: keyword arguments of the environment.
        num_envs: N, environments in lock-step.
        seed: of the initial weights.
        preset: named hyperparameters, one of the agent's `presets`.
        hyperparameters: those that differ from the preset's.
        episodes: of the whole training, that the agent learns from.
        learns: False where it only plays, and needs no replay.
    """

    env: str
    env_kwargs: dict[str, Any]
    num_envs: int
    seed: int
    preset: str
    hyperparameters: dict[str, Any]
    episodes: int
    learns: bool = True


@dataclass(frozen=True)
class Progress:
    """The state of a training, for displays.

    Attributes:
        step: actions that the agent has learned from, of all episodes.
        validation_accuracy: last measured, mean over the environments.
        metrics: see `Agent.metrics`.
    """

    step: int
    validation_accuracy: float
    metrics: dict[str, float] = field(default_factory=dict)


@runtime_checkable
class ValuePolicy(Protocol):
    """A `Policy` that also says what it expects of each action."""

    def values(self, observation: NDArray[Any]) -> NDArray[np.float32]:
        """Values (actions,) of an observation (history, D)."""


class Agent(ABC):
    """A learning algorithm with the environments that it plays, one round of episodes at a time.

    Class attributes:
        presets: names of the hyperparameters to choose from; the first is the default.
        model_suffix: of the file that `save` writes.
        learns_from_replay: whether a resumed training needs the transitions of the earlier episodes; they are then
            kept in the run folder, and `refill_replay` gets them.
        rows: environments in lock-step that it plays, unless the user says otherwise.
        libraries: distributions whose versions belong in the record of a run.

    Attributes:
        training: the training runs that it plays, see `training_of`; what an episode hands on to the next one in them
            is saved with the run.
        settings: the hyperparameters, JSON-able, for the record.
        history: frames of an observation that the policy takes.
    """

    presets: ClassVar[tuple[str, ...]] = ("default",)
    model_suffix: ClassVar[str]
    learns_from_replay: ClassVar[bool] = False
    rows: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()

    training: Training
    settings: dict[str, Any]
    history: int = 1

    @abstractmethod
    def __init__(self, spec: AgentSpec) -> None:
        """A fresh agent with its environments.

        Raises:
            ValueError: a hyperparameter is wrong, or the agent cannot play the environment.
        """

    @classmethod
    def check(cls, preset: str, hyperparameters: dict[str, Any]) -> None:
        """Refuse what is wrong before data are loaded and references are trained.

        Raises:
            ValueError: the preset or a hyperparameter is unknown, or a value out of its range.
        """
        if preset not in cls.presets:
            raise ValueError(unknown_name("preset", preset, cls.presets))

    @classmethod
    def env_defaults(cls, config: TaskConfig, batches: int | None, given: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments of the environment with which it plays best; those that the user gives take precedence.

        Args:
            config: of the environment, with the user's.
            batches: mini-batches of an episode; None: the episodes differ.
            given: the user's.
        """
        return {}

    @cached_property
    def facts(self) -> EnvFacts:
        """Of its environment."""
        return EnvFacts.of(self.training)

    # --- learning ---------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def steps(self) -> int:
        """Actions that it has learned from."""

    @abstractmethod
    def play_round(
        self, seeds: Sequence[int], exploration: float | None, show: Callable[[Progress], None]
    ) -> list[Episode]:
        """One whole episode of every environment.

        All random numbers are seeded anew, so that an agent restored between two rounds goes on as it would have.

        Args:
            seeds: one per environment.
            exploration: None: learn, and explore as the hyperparameters say; else only play, with this share of random
                actions.
            show: called after actions, not necessarily after each.

        Returns:
            The episodes in the order of the seeds, with their frames where the agent learns from a replay.
        """

    def metrics(self) -> dict[str, float]:
        """Numbers that describe the agent as it was in the last round, such as its exploration.

        They are columns of the run's table of episodes; the names are always the same.
        """
        return {}

    def judge_episode(self, episode: Episode) -> dict[str, float]:
        """Numbers that the agent, as it is now, finds for an episode; they are columns as well."""
        return {}

    # --- playing ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def policy(self) -> Policy:
        """The agent without exploration; a `ValuePolicy` where it values actions.

        A new object at each call: it plays one environment, or one row, while others play other rows.
        """

    # --- files ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the agent to a file, atomically: all that it needs to go on, but its replay and its environments."""

    @abstractmethod
    def load(self, path: Path) -> None:
        """Take over what `save` wrote; nothing in the file is executed.

        Raises:
            ValueError: the file is damaged or of another agent.
        """

    def refill_replay(self, rounds: Iterable[Sequence[Arrays]]) -> None:
        """After `load`: put rounds of episodes into the replay, as playing them did.

        Args:
            rounds: those that were learned from, each with one episode per environment.

        Raises:
            NotImplementedError: the agent does not learn from a replay.
        """
        raise NotImplementedError("only agents that learn from a replay are given rounds to refill it with")

    @abstractmethod
    def close(self) -> None:
        """Close the environments."""


# --- the registry ---------------------------------------------------------------------------------------------------

AGENTS: dict[str, type[Agent]] = {}  # those that were registered, and those of the folder that were asked for
_FOLDER = "agents"  # of the package; one file in it is one agent


def register_agent(name: str, agent: type[Agent]) -> None:
    """Make an agent available under a name, for `qan train --agent NAME` and `RunConfig.agent`.

    Args:
        name: of the agent; of one in the folder `qan_agents/agents`, its file's name with "-" for "_".
        agent: its class.

    Raises:
        ValueError: the name is taken, or what must be callable is not.
    """
    others = [one for one in _names_in_folder() if getattr(agent, "__module__", None) != _module_of(one)]
    add(AGENTS, "an agent", name, agent, taken=others)


def agent_names() -> list[str]:
    """The names of all agents; none of them is imported for it."""
    return list(dict.fromkeys((*_names_in_folder(), *AGENTS)))


def agent_class(name: str) -> type[Agent]:
    """The agent of a name; its file is imported where it was not yet.

    Raises:
        ValueError: there is none of that name.
        ModuleNotFoundError: a library that the agent needs is not installed.
    """
    if name not in agent_names():
        raise ValueError(unknown_name("agent", name, agent_names()))
    if name not in AGENTS:
        import_module(_module_of(name))
    return AGENTS[name]


def _names_in_folder() -> list[str]:
    folder = [str(Path(path) / _FOLDER) for path in qan_agents.__path__]
    return [module.name.replace("_", "-") for module in iter_modules(folder)]


def _module_of(name: str) -> str:
    return f"{qan_agents.__name__}.{_FOLDER}.{name.replace('-', '_')}"
