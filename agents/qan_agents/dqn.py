"""Stable-Baselines3's DQN on the games: two sets of hyperparameters, and episodes that can be saved between."""

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import FrameStackObservation
from numpy.typing import NDArray
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from qan_agents.replay import ScreenReplayBuffer
from qan_gym.observation import SCORES

Q_BATCH = 64  # observations whose values are asked for at once
EVERY_STEP = TrainFreq(1, TrainFrequencyUnit.STEP)


class Filters(BaseFeaturesExtractor):
    """The paper's network: one convolution of 32 8x8 filters, stride 4, padding 1, over the last screens; 512 units."""

    def __init__(self, space: gym.spaces.Box, rows: int, columns: int) -> None:
        """space: (history, rows * columns)."""
        super().__init__(space, features_dim=512)
        history = space.shape[0]
        convolution = nn.Sequential(
            nn.Unflatten(2, (rows, columns)),  # (B, history, rows, columns)
            nn.Conv2d(history, 32, kernel_size=8, stride=4, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        with torch.no_grad():
            size = convolution(torch.zeros(1, *space.shape)).shape[1]
        self.layers = nn.Sequential(convolution, nn.Linear(size, 512), nn.ReLU())

    def forward(self, observations: Tensor) -> Tensor:
        """(B, history, rows * columns) -> (B, 512)."""
        return self.layers(observations)


class ScoreLine(BaseFeaturesExtractor):
    """The score line of the last screens, and the root mean square of the filters: few numbers for few episodes."""

    def __init__(self, space: gym.spaces.Box, rows: int, columns: int) -> None:
        """space: (history, rows * columns), with the score line as the last row."""
        super().__init__(space, features_dim=space.shape[0] * (SCORES + 1))
        self.rows, self.columns = rows, columns

    def forward(self, observations: Tensor) -> Tensor:
        """(B, history, rows * columns) -> (B, history * 6)."""
        screens = observations.unflatten(2, (self.rows, self.columns))  # (B, history, rows, columns)
        size = screens[:, :, :-1].square().mean(dim=(2, 3)).sqrt()[..., None]  # (B, history, 1)
        return torch.cat([screens[:, :, -1, :SCORES], size], dim=2).flatten(1)


@dataclass(frozen=True)
class Preset:
    """A named set of hyperparameters.

    Attributes:
        history: screens in an observation.
        update_every: steps between updates.
        extractor: what reads the screens.
        settings: the other arguments of SB3's DQN, given the number of steps of the whole training.
    """

    history: int
    update_every: int
    extractor: type[BaseFeaturesExtractor]
    settings: Callable[[int], dict[str, Any]]


def _paper(steps: int) -> dict[str, Any]:
    return {
        "buffer_size": min(1_000_000, steps),  # more would never be filled
        "batch_size": 32,
        "gamma": 0.99,
        "learning_rate": 2.5e-4,
        "gradient_steps": 1,
        "target_update_interval": 10_000,
        "learning_starts": min(50_000, steps // 20),
        "exploration_initial_eps": 1.0,
        "exploration_final_eps": 0.1,
        "exploration_fraction": min(1.0, 1_000_000 / steps),
        "policy_kwargs": {
            "net_arch": [],
            "optimizer_class": torch.optim.RMSprop,
            "optimizer_kwargs": {"alpha": 0.95, "eps": 0.01, "centered": True},
        },
    }


def _quick(steps: int) -> dict[str, Any]:
    return {
        "buffer_size": min(100_000, steps),
        "batch_size": 64,
        "gamma": 0.99,
        "learning_rate": 1e-3,
        "gradient_steps": 2,
        "target_update_interval": 200,
        "learning_starts": min(200, steps // 20),
        "exploration_initial_eps": 1.0,
        "exploration_final_eps": 0.05,
        "exploration_fraction": 0.6,
        "policy_kwargs": {"net_arch": [64, 64]},
    }


PRESETS = {"paper": Preset(4, 4, Filters, _paper), "quick": Preset(1, 1, ScoreLine, _quick)}


def stack_history(env: gym.Env, preset: Preset) -> gym.Env:
    """The environment as the agent of a preset sees it: observations (history, rows * columns)."""
    return FrameStackObservation(env, preset.history)


def make_dqn(env: VecEnv, preset: Preset, steps: int, seed: int) -> DQN:
    """A fresh agent.

    Args:
        env: of qan-gym's, with observations (history, rows * columns).
        preset: the hyperparameters.
        steps: of the whole training, which the exploration is spread over.
        seed: of its initial weights and its exploration.

    Raises:
        ValueError: the observation lacks the score line that the preset reads.
    """
    config = env.get_attr("config")[0]
    if preset.extractor is ScoreLine and config.observation != "screen":
        raise ValueError("the preset quick reads the score line: use observation='screen' or the preset paper")
    rows, columns = env.get_attr("screen_shape")[0]
    settings = preset.settings(steps)
    settings["policy_kwargs"] |= {
        "features_extractor_class": preset.extractor,
        "features_extractor_kwargs": {"rows": rows, "columns": columns},
    }
    return DQN(
        "MlpPolicy",
        env,
        train_freq=(1, "step"),
        replay_buffer_class=ScreenReplayBuffer,
        seed=seed,
        device="cpu",
        **settings,
    )


def begin(model: DQN, steps: int, callback: BaseCallback) -> BaseCallback:
    """Make a fresh or restored agent ready for `train_round`; steps: of the whole training."""
    _, callback = model._setup_learn(steps - model.num_timesteps, callback, reset_num_timesteps=False)
    return callback


def train_round(model: DQN, preset: Preset, seeds: Sequence[int], callback: BaseCallback) -> None:
    """What `model.learn` does, for one whole episode of every row, so that the agent can be saved between.

    All random numbers are seeded anew, so that an agent restored between two rounds goes on as it would have.

    Args:
        model: on a `RoundRecorder`, made ready by `begin`.
        preset: of the model.
        seeds: one per row.
        callback: what `begin` returned.
    """
    set_random_seed(seeds[0])
    model.action_space.seed(seeds[0])
    model.env.seed_rows(seeds)
    model._last_obs = model.env.reset()
    model.replay_buffer.start_round()
    while not all(episode.over for episode in model.env.episodes):
        before = model.num_timesteps
        model.collect_rollouts(
            model.env, callback, EVERY_STEP, model.replay_buffer, learning_starts=model.learning_starts
        )
        updates = model.num_timesteps // preset.update_every - before // preset.update_every
        if updates > 0 and model.num_timesteps > model.learning_starts:
            model.train(updates * model.gradient_steps, model.batch_size)


def play_round(model: DQN, epsilon: float, seeds: Sequence[int], played: Callable[[list[dict]], None]) -> None:
    """One whole episode of every row, from which nothing is learned.

    Args:
        model: on a `RoundRecorder`.
        epsilon: share of random actions.
        seeds: one per row.
        played: called after every action with the infos.
    """
    rng = np.random.default_rng(seeds[0])
    model.env.seed_rows(seeds)
    observations = model.env.reset()
    while not all(episode.over for episode in model.env.episodes):
        actions, _ = model.predict(observations, deterministic=True)  # (N,)
        chance = rng.integers(model.action_space.n, size=len(actions))
        observations, _, _, infos = model.env.step(np.where(rng.random(len(actions)) < epsilon, chance, actions))
        played(infos)


@torch.no_grad()
def mean_max_q(model: DQN, frames: Sequence[NDArray[np.float32]], history: int) -> float:
    """The mean over an episode of max_a Q(s, a), as the agent sees it now.

    Args:
        model: trained so far.
        frames: the single screens (D,) of the episode, the last one (after which nothing is decided) too.
        history: screens in an observation.
    """
    screens = np.stack(frames)
    steps = np.arange(len(screens) - 1)[:, None] + np.arange(1 - history, 1)  # (T, history)
    total = 0.0
    for some in np.array_split(steps.clip(min=0), -(-len(steps) // Q_BATCH)):
        observations = torch.as_tensor(screens[some], device=model.device)  # (B, history, D)
        total += float(model.q_net(observations).max(dim=1).values.sum())
    return total / len(steps)


def load_weights(model: DQN, path: Path) -> None:
    """Put a saved agent's weights into a fresh one; no code of the file is run.

    Raises:
        ValueError: the file is damaged or of another agent.
    """
    try:
        model.set_parameters(str(path), device="cpu")
    except (OSError, ValueError, RuntimeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: damaged, or not of this agent ({error})") from error


class Greedy:
    """A trained agent as a `Policy`: always the action of the highest value."""

    def __init__(self, model: DQN) -> None:
        """model: trained."""
        self.model = model

    def start(self, env: gym.Env, seed: int) -> None:
        """See `Policy.start`."""

    def act(self, observation: NDArray[Any], info: dict[str, Any]) -> Any:
        """See `Policy.act`."""
        action, _ = self.model.predict(observation, deterministic=True)
        return int(action)
