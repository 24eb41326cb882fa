"""Agents as the controllers of a bench: trained on so many trainings, then played greedily."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray

import qan_agents.bench.clipped_reward  # noqa: F401 (registers its reward)
from qan_agents.bench.controllers import Infos, Prepared, Problem, Settings, batches_of, looking_every
from qan_agents.dqn.agent import Game, train
from qan_agents.dqn.ensemble import Ensemble
from qan_agents.dqn.presets import make_dqn_config
from qan_gym.games.learning_rate import KEEP

DECISIONS = 50  # of an episode, unless the settings say otherwise
CAUTION = 0.5  # of the ensemble, see `Ensemble.choose`


def playing(problem: Problem, wanted: Settings, continuous: bool) -> Settings:
    """How an agent plays the learning-rate game: few long actions that multiply the learning rate, on top of a
    cooldown, paid by the drop in the validation loss; the mini-batch game it plays as it is.

    Args:
        problem: what it plays.
        wanted: keyword arguments that differ.
        continuous: the agent's actions are.
    """
    every = looking_every(problem)
    if problem.task.game != "learning-rate":
        return {"validate_every": every, "reward": "validation-loss", **wanted}
    own = {
        "batches_per_action": max(1, batches_of(problem) // DECISIONS),
        "validate_every": every,
        "reward": "validation-loss",
        "schedule": "cooldown",
        **({"continuous": True} if continuous else {"action_scale": "multiplicative"}),
    }
    return {**own, **wanted}


class Agent:
    """A trained agent as a `Player`."""

    def __init__(self, choose: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """choose: (N, D) observations -> the actions, (N,) or (N, 1)."""
        self.choose = choose

    def start(self, env: VectorEnv) -> None:
        """See `Player.start`."""

    def act(self, observations: NDArray[Any], infos: Infos) -> NDArray[Any]:
        """See `Player.act`."""
        return self.choose(observations)


def train_agent(name: str, problem: Problem, settings: Settings) -> Prepared:
    """Train an agent on the problem's budget, in waves of `at_once` trainings.

    Args:
        name: "dqn-gpu", "dqn", "qr-dqn", "ppo", "sac" or "td3".
        problem: what it is to control.
        settings: `env`, see `playing`; all others are hyperparameters.

    Raises:
        ValueError: a setting is wrong, or the budget is no whole number of waves.
    """
    rows = min(problem.at_once, problem.runs)
    if rows < 1 or problem.runs % rows:
        raise ValueError(
            f"an agent is trained in waves of {problem.at_once}: {problem.runs} runs are no number of them"
        )
    hyperparameters = {key: value for key, value in settings.items() if key != "env"}
    arguments = playing(problem, settings.get("env", {}), continuous=name in ("sac", "td3"))
    return (_bundled if name == "dqn-gpu" else _sb3)(name, problem, arguments, hyperparameters, rows)


class SpentIsOver(VectorWrapper):
    """The budget's end ends the return as well: nothing is expected after it.

    `truncated` says "it could go on", and agents then add the value that they believe the last state to have. Here the
    time that is left is seen, and nothing follows (arXiv:1712.00378); that value would be learned from nothing.
    """

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """See `VectorEnv.step`."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        return observations, rewards, terminated | truncated, truncated & False, infos


def _training_env(problem: Problem, arguments: Settings, rows: int, output: str) -> VectorEnv:
    kwargs = {**problem.env_kwargs, **arguments}
    return SpentIsOver(
        gym.make_vec(problem.env, num_envs=rows, output=output, autoreset_mode=AutoresetMode.SAME_STEP, **kwargs)
    )


def _bundled(name: str, problem: Problem, arguments: Settings, wanted: Settings, rows: int) -> Prepared:
    caution = wanted.pop("caution", CAUTION)
    if isinstance(caution, bool) or not isinstance(caution, int | float) or not caution >= 0:
        raise ValueError(f"caution must be a number of at least 0, not {caution!r}")
    env = _training_env(problem, arguments, rows, "torch")
    decisions = env.unwrapped.episode_length
    steps = problem.runs * decisions
    # The whole return is learned from: estimates built on estimates of the near future end at a low learning rate,
    # which lowers the loss at once and costs later.
    config = make_dqn_config("control", steps, {"n_step": decisions, **wanted})
    if config.history != 1:
        raise ValueError("a bench plays agents without a history of frames: history must be 1")
    agent = Ensemble(config, Game.of(env), rows, str(env.unwrapped.training.device), seed=problem.seed)
    finished = train(agent, env, steps, seed=problem.tuning_seed(0))
    default = KEEP if problem.task.game == "learning-rate" else None

    def choose(observations: NDArray[Any]) -> NDArray[Any]:
        seen = torch.as_tensor(observations, device=agent.device)[:, None]  # (N, 1, D)
        return agent.choose(seen, default, caution).cpu().numpy()

    batches = steps * env.unwrapped.config.batches_per_action
    chosen = {**asdict(config), "members": rows, "caution": caution}
    return Prepared(Agent(choose), arguments, _consumed(len(finished), problem), batches, chosen)


def _consumed(finished: int, problem: Problem) -> int:
    """Trainings begun: of those that diverged there may be more than was allowed, in as many mini-batches."""
    return max(finished, problem.runs)


def _sb3(name: str, problem: Problem, arguments: Settings, wanted: Settings, rows: int) -> Prepared:
    from stable_baselines3 import DQN as SB3DQN
    from stable_baselines3 import PPO, SAC, TD3
    from stable_baselines3.common.logger import Logger

    from qan_agents.sb3.bridge import GymnasiumVecEnv, StackHistory
    from qan_agents.sb3.dqn import Extractor

    algorithms: dict[str, Any] = {"dqn": SB3DQN, "ppo": PPO, "sac": SAC, "td3": TD3}
    if name == "qr-dqn":
        from sb3_contrib import QRDQN

        algorithms[name] = QRDQN
    games = _training_env(problem, arguments, rows, "numpy")
    env, about = StackHistory(GymnasiumVecEnv(games), 1), games.unwrapped
    decisions, batches_per_action = about.episode_length, about.config.batches_per_action
    screen_rows, columns = about.screen_shape
    steps = problem.runs * decisions
    extractor = {"features": "scores", "rows": screen_rows, "columns": columns}
    defaults = {
        "policy_kwargs": {
            "net_arch": [64, 64],
            "features_extractor_class": Extractor,
            "features_extractor_kwargs": extractor,
        },
        "gamma": 0.995,
        **_own(name, rows, decisions, steps),
    }
    try:
        model = algorithms[name]("MlpPolicy", env, seed=problem.seed, device="cpu", **{**defaults, **wanted})
    except TypeError as error:
        raise ValueError(f"settings of {name}: {error}") from error
    model.set_logger(Logger(folder=None, output_formats=[]))  # else each leaves an empty folder behind
    env.seed(problem.tuning_seed(0))
    model.learn(steps)

    def choose(observations: NDArray[Any]) -> NDArray[Any]:
        return model.predict(observations[:, None], deterministic=True)[0]

    done = -(-model.num_timesteps // decisions)
    shown = {key: value for key, value in {**defaults, **wanted}.items() if key != "policy_kwargs"}
    return Prepared(Agent(choose), arguments, done, model.num_timesteps * batches_per_action, shown)


def _own(name: str, rows: int, decisions: int, steps: int) -> Settings:
    """Hyperparameters of SB3's algorithms for a few hundred to a few thousand steps."""
    if name == "ppo":
        return {"n_steps": decisions, "batch_size": decisions, "n_epochs": 10, "learning_rate": 1e-3}
    early = {"learning_starts": min(200, steps // 5), "buffer_size": max(steps, 1), "train_freq": 1}
    off_policy = {**early, "gradient_steps": 8 * rows}
    if name in ("dqn", "qr-dqn"):
        return {**off_policy, "learning_rate": 1e-3, "batch_size": 64, "target_update_interval": 200}
    return {**off_policy, "learning_rate": 1e-3, "batch_size": 64}
