"""The training loop of the bundled DQN on any vector environment of Gymnasium."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from qan_agents.dqn.vector_env import EnvInterface, TensorVectorEnv, Transitions
from qan_gym.utils.own_settings import own_settings

SHOW_EVERY = 0.1  # seconds: showing progress makes the host wait for the device


class FinishedEpisode(NamedTuple):
    """An episode that ended in training: after how many steps of all environments, and its undiscounted return."""

    step: int
    total_reward: float


class PlayingAgent(Protocol):
    """The interface of the agents that `play_on` trains; see `DQN`, `Ensemble` and `qan_agents.ppo.PPO`."""

    device: torch.device

    @property
    def steps(self) -> int:
        """Steps of single environments, that it has learned from."""

    def act(self) -> Tensor:
        """Actions (N,) in all rows."""

    def remember(self, transitions: Transitions) -> None:
        """Keep the step that the last actions made."""

    def learn(self) -> None:
        """Count a step of every environment, and do the updates that are due."""


class VectorAgent(PlayingAgent, Protocol):
    """The interface of the agents that `train` trains; see `DQN` and `Ensemble`."""

    interface: EnvInterface

    def begin(self, frames: Tensor) -> None:
        """Begin an episode in every row, with frames (N, D)."""


@own_settings()
def train(
    agent: VectorAgent,
    env: VectorEnv[Any, Any, Any],
    steps: int,
    seed: int | None = None,
    show: Callable[[int], None] | None = None,
) -> list[FinishedEpisode]:
    """Let an agent play and learn.

    Args:
        agent: fresh, or trained so far.
        env: one that the agent was made for.
        steps: of single environments, to be done now.
        seed: of the environment's first reset; None: the environment's own choice.
        show: called now and then with the steps done so far.

    Returns:
        The episodes that ended, in their order.

    Raises:
        ValueError: the agent was made for another environment, or the environment does not reset itself.
    """
    if EnvInterface.of(env) != agent.interface:
        raise ValueError(f"the agent was made for {agent.interface}, not for {EnvInterface.of(env)}")
    tensor_env = TensorVectorEnv(env, agent.device)
    agent.begin(tensor_env.reset(seed))
    return play_on(agent, tensor_env, steps, show)


def play_on(
    agent: PlayingAgent, env: TensorVectorEnv, steps: int, show: Callable[[int], None] | None
) -> list[FinishedEpisode]:
    """Let an agent whose episodes have begun play and learn; the arguments and the result are those of `train`."""
    num_envs = env.env.num_envs
    rounds = -(-steps // num_envs)
    # Of each step, (rounds, N): kept on the device and read at the end.
    ended = torch.zeros(rounds, num_envs, dtype=torch.bool, device=agent.device)
    returns = torch.zeros(rounds, num_envs, device=agent.device)
    total = torch.zeros(num_envs, device=agent.device)
    before, shown = agent.steps, 0.0
    for step in range(rounds):
        transitions = env.step(agent.act())
        agent.remember(transitions)
        agent.learn()
        total += transitions.rewards * transitions.valid
        returns[step], ended[step] = total, transitions.ended
        total.masked_fill_(transitions.ended, 0.0)
        if show is not None and time.perf_counter() - shown > SHOW_EVERY:
            shown = time.perf_counter()
            show(agent.steps)
    return _finished_episodes(ended, returns, before)


def _finished_episodes(ended: Tensor, returns: Tensor, before: int) -> list[FinishedEpisode]:
    """Those of the steps (rounds, N) at which an episode ended."""
    where = ended.cpu().numpy()
    rounds = np.nonzero(where)[0]
    totals = returns.cpu().numpy()[where]
    num_envs = where.shape[1]
    return [
        FinishedEpisode(before + (int(step) + 1) * num_envs, float(total))
        for step, total in zip(rounds, totals, strict=True)
    ]
