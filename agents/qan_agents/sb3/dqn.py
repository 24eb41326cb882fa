"""Stable-Baselines3's DQN in a run: the same hyperparameters, and rounds of episodes that can be saved between."""

import json
import math
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import set_random_seed
from torch import Tensor

from qan_agents.dqn.agent import DQNConfig, Game
from qan_agents.dqn.features import FEATURES
from qan_agents.dqn.rmsprop import DeepMindRMSprop
from qan_agents.experiments.learner import GameFacts, Progress
from qan_agents.policies.rollout import Episode
from qan_agents.sb3.bridge import RoundRecorder, StackHistory, vec_env
from qan_agents.sb3.replay import ScreenReplayBuffer, add_round
from qan_gym.utils.files import write_aside

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "rmsprop": DeepMindRMSprop}
EVERY_STEP = TrainFreq(1, TrainFrequencyUnit.STEP)
MISSING = (  # in SB3's DQN
    *("layer_norm", "dueling", "quantiles", "double", "n_step", "clip_td_error", "storage"),
    *("priority_exponent", "importance_initial"),
)
KEPT = ("_episode_num", "num_timesteps", "_n_updates", "_n_calls")  # of a saved agent's attributes


class Extractor(BaseFeaturesExtractor):
    """What reads the last frames, as SB3 wants it."""

    def __init__(self, space: gym.spaces.Box, features: str, rows: int, columns: int) -> None:
        """space: (history, rows * columns); features: one of FEATURES."""
        layers = FEATURES[features](space.shape[0], rows, columns)
        super().__init__(space, features_dim=layers.size)
        self.layers = layers

    def forward(self, observations: Tensor) -> Tensor:
        """(B, history, rows * columns) -> (B, features_dim)."""
        return self.layers(observations)


def sb3_arguments(config: DQNConfig, steps: int) -> dict[str, Any]:
    """The hyperparameters as arguments of SB3's DQN, without `train_freq` (see `SB3Learner.play_round`).

    Args:
        config: the hyperparameters.
        steps: of the whole training.

    Raises:
        ValueError: they ask for what SB3's DQN does not have.
    """
    plain = DQNConfig()
    asked = [name for name in MISSING if getattr(config, name) != getattr(plain, name)]
    if asked:
        raise ValueError(f"Stable-Baselines3's DQN has no {', '.join(asked)}: use --agent dqn-gpu, or another preset")
    return {
        "buffer_size": config.buffer_size,
        "batch_size": config.batch_size,
        "gamma": config.gamma,
        "learning_rate": config.learning_rate,
        "gradient_steps": config.gradient_steps,
        "target_update_interval": config.target_update_interval,
        "tau": config.tau,
        "learning_starts": config.learning_starts,
        "exploration_initial_eps": config.exploration_initial,
        "exploration_final_eps": config.exploration_final,
        "exploration_fraction": min(1.0, config.exploration_steps / max(steps, 1)),
        "max_grad_norm": math.inf if config.max_grad_norm is None else config.max_grad_norm,
        "policy_kwargs": {
            "net_arch": list(config.hidden),
            "optimizer_class": OPTIMIZERS[config.optimizer],
            "optimizer_kwargs": {"eps": config.optimizer_epsilon},
        },
    }


class _Report(BaseCallback):
    def __init__(self, show: Callable[[Progress], None]) -> None:
        super().__init__()
        self.show = show

    def _on_step(self) -> bool:
        self.show(Progress(self.num_timesteps, self.model.exploration_rate, _accuracy(self.locals["infos"])))
        return True


def _accuracy(infos: list[dict[str, Any]]) -> float:
    return float(np.mean([info["validation_accuracy"] for info in infos]))


class SB3Learner:
    """SB3's DQN as a `Learner`, on the CPU."""

    device = torch.device("cpu")

    def __init__(
        self,
        env: str,
        env_kwargs: dict[str, Any],
        num_envs: int,
        seed: int,
        configure: Callable[[int], DQNConfig],
        training_episodes: int,
    ) -> None:
        """A fresh agent.

        Args:
            env: the id.
            env_kwargs: of it.
            num_envs: N.
            seed: of the initial weights.
            configure: the hyperparameters, given the actions of an episode.
            training_episodes: of the whole training, which SB3 spreads the exploration over.

        Raises:
            ValueError: SB3's DQN does not have what the hyperparameters ask for, or they do not go with the game.
        """
        recorder = RoundRecorder(vec_env(env, num_envs, **env_kwargs))
        game = recorder.unwrapped.env.unwrapped
        self.facts = GameFacts(game.config, game.training.parts.fingerprint, game.episode_length)
        self.config = configure(game.episode_length)
        Game.of(game).require(self.config)
        self.actions = Game.of(game).actions
        self.env = StackHistory(recorder, self.config.history)
        self.total = training_episodes * game.episode_length
        arguments = sb3_arguments(self.config, self.total)
        rows, columns = game.screen_shape
        arguments["policy_kwargs"] |= {
            "features_extractor_class": Extractor,
            "features_extractor_kwargs": {"features": self.config.features, "rows": rows, "columns": columns},
        }
        self.model = DQN(
            "MlpPolicy",
            self.env,
            train_freq=(1, "step"),
            replay_buffer_class=ScreenReplayBuffer,
            seed=seed,
            device="cpu",
            **arguments,
        )
        self.model.set_logger(Logger(folder=None, output_formats=[]))  # what is logged, the run logs

    @property
    def steps(self) -> int:
        """See `Learner.steps`."""
        return self.model.num_timesteps

    @property
    def exploration(self) -> float:
        """See `Learner.exploration`."""
        return self.model.exploration_rate

    def play_round(
        self, seeds: Sequence[int], epsilon: float | None, show: Callable[[Progress], None]
    ) -> list[Episode]:
        """See `Learner.play_round`."""
        self.env.seed_rows(seeds)
        if epsilon is None:
            self._train(seeds, show)
        else:
            self._only_play(seeds, epsilon, show)
        return self.env.episodes

    def _train(self, seeds: Sequence[int], show: Callable[[Progress], None]) -> None:
        """What `model.learn` does, for one whole episode of every row."""
        model = self.model
        # Resets the environment, which the seeds given are then spent on, so it goes first.
        _, callback = model._setup_learn(self.total - model.num_timesteps, _Report(show), reset_num_timesteps=False)
        set_random_seed(seeds[0])
        model.action_space.seed(seeds[0])
        self.env.seed_rows(seeds)
        model._last_obs = self.env.reset()
        model.replay_buffer.start_round()
        while not all(episode.over for episode in self.env.episodes):
            before = model.num_timesteps
            model.collect_rollouts(
                self.env, callback, EVERY_STEP, model.replay_buffer, learning_starts=model.learning_starts
            )
            updates = model.num_timesteps // self.config.update_every - before // self.config.update_every
            if updates > 0 and model.num_timesteps > model.learning_starts:
                model.train(updates * model.gradient_steps, model.batch_size)

    def _only_play(self, seeds: Sequence[int], epsilon: float, show: Callable[[Progress], None]) -> None:
        model = self.model
        rng = np.random.default_rng(seeds[0])
        observations = self.env.reset()
        while not all(episode.over for episode in self.env.episodes):
            actions, _ = model.predict(observations, deterministic=True)  # (N,)
            chance = rng.integers(model.action_space.n, size=len(actions))
            observations, _, _, infos = self.env.step(np.where(rng.random(len(actions)) < epsilon, chance, actions))
            show(Progress(model.num_timesteps, epsilon, _accuracy(infos)))

    @torch.no_grad()
    def values(self, observations: Tensor) -> Tensor:
        """See `Learner.values`."""
        return self.model.q_net(observations)

    @torch.no_grad()
    def target_values(self, observations: Tensor) -> Tensor:
        """See `Learner.target_values`."""
        return self.model.q_net_target(observations)

    def save(self, path: Path, episodes: int) -> None:
        """See `Learner.save`."""
        self.model._episode_num = episodes  # what rows played while they waited for the others does not count
        with write_aside(path) as aside:
            self.model.save(aside)

    def load(self, path: Path) -> None:
        """See `Learner.load`; no code of the file is run."""

        try:
            self.model.set_parameters(str(path), device="cpu")
            with zipfile.ZipFile(path) as archive:
                data = json.loads(archive.read("data"))
            vars(self.model).update({name: int(data[name]) for name in KEPT})
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: damaged, or not of this agent ({error})") from error

    def put_back(self, rounds: Iterable[Sequence[dict[str, NDArray[Any]]]]) -> None:
        """See `Learner.put_back`."""
        for arrays in rounds:
            add_round(self.model.replay_buffer, arrays, self.config.history)

    def close(self) -> None:
        """See `Learner.close`."""
        self.env.close()
