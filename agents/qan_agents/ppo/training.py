"""The training loop of the bundled PPO on any vector environment of Gymnasium."""

from collections.abc import Callable
from typing import Any

from gymnasium.vector import VectorEnv

from qan_agents.dqn.training import FinishedEpisode, play_on
from qan_agents.dqn.vector_env import TensorVectorEnv
from qan_agents.ppo.agent import PPO
from qan_agents.ppo.interface import PPOInterface
from qan_gym.utils.own_settings import own_settings


@own_settings()
def train(
    agent: PPO,
    env: VectorEnv[Any, Any, Any],
    steps: int,
    seed: int | None = None,
    show: Callable[[int], None] | None = None,
) -> list[FinishedEpisode]:
    """Let an agent play and learn.

    Args:
        agent: fresh, or trained so far.
        env: one that the agent was made for.
        steps: of single environments, to be done now; rounded up to whole steps of all. What is left over from the last
            round is learned from in the next training.
        seed: of the environment's first reset; None: the environment's own choice.
        show: called now and then with the steps done so far.

    Returns:
        The episodes that ended, in their order.

    Raises:
        ValueError: the agent was made for another environment, or the environment does not reset itself.
    """
    tensor_env = TensorVectorEnv(env, agent.device)
    frames = tensor_env.reset(seed)
    interface = PPOInterface.of(env, agent.config.privileged, tensor_env.infos)
    if interface != agent.interface:
        raise ValueError(f"the agent was made for {agent.interface}, not for {interface}")
    agent.begin(frames, tensor_env.infos)
    return play_on(agent, tensor_env, steps, show)
