"""Stable-Baselines3's DQN as the agent of a run, on the CPU."""

import io
import json
import math
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import set_random_seed
from torch import Tensor

from qan_agents.dqn.config import DQNConfig
from qan_agents.dqn.presets import PRESETS, make_dqn_config
from qan_agents.dqn.rmsprop import DeepMindRMSprop
from qan_agents.dqn.values import GreedyPolicy, judge_episode
from qan_agents.dqn.vector_env import EnvInterface
from qan_agents.experiments.agent import (
    Agent,
    AgentSpec,
    Arrays,
    Progress,
    register_agent,
    training_of,
)
from qan_agents.policies.rollout import Episode
from qan_agents.sb3.bridge import GymnasiumVecEnv, vec_env
from qan_agents.sb3.extractor import extractor_arguments
from qan_agents.sb3.replay import FrameReplayBuffer, add_round
from qan_agents.sb3.wrappers import RoundRecorder, StackHistory
from qan_gym.utils.files import reading, write_bytes
from qan_gym.utils.own_settings import in_own_settings, own_settings, threads_for
from qan_gym.vector_env import QanVectorEnv

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "rmsprop": DeepMindRMSprop}
EVERY_STEP = TrainFreq(1, TrainFrequencyUnit.STEP)
MISSING = (  # in SB3's DQN
    *("layer_norm", "dueling", "quantiles", "double", "n_step", "clip_td_error", "storage"),
    *("priority_exponent", "importance_initial"),
)
RESTORED = (  # attributes of a saved agent
    *("num_timesteps", "_episode_num", "_n_updates", "_n_calls"),
    *("exploration_rate", "_current_progress_remaining"),
)


class SB3DQN(Agent):
    """SB3's DQN: the hyperparameters of the bundled one, as far as it has them, and rounds of whole episodes.

    Attributes:
        config: the hyperparameters.
        model: SB3's object.
        env: what it plays.
        device: the CPU.
        own_settings: of the process, that its calls compute under.
    """

    presets = ("quick", "paper")
    model_suffix = ".zip"
    learns_from_replay = True
    libraries = ("stable-baselines3",)
    device = torch.device("cpu")

    def __init__(self, spec: AgentSpec) -> None:
        """See `Agent.__init__`."""
        bridge = vec_env(spec.env, spec.num_envs, **spec.env_kwargs).unwrapped
        assert isinstance(bridge, GymnasiumVecEnv)
        self.training = training_of(bridge.env)
        self.total = spec.episodes * self.facts.episode_length  # over which SB3 spreads the exploration
        interface = EnvInterface.of(bridge.env)
        score_line = interface.score_line > 0
        self.config = make_dqn_config(spec.preset, self.total, spec.hyperparameters, score_line)
        self.settings, self.history = asdict(self.config), self.config.history
        interface.check(self.config)
        self.bridge, self.recorder = bridge, RoundRecorder(bridge)
        self.env = StackHistory(self.recorder, self.history)
        arguments = sb3_arguments(self.config, self.total)
        if not spec.learns:
            arguments["buffer_size"] = 1
        assert isinstance(bridge.env.unwrapped, QanVectorEnv)
        arguments["policy_kwargs"] |= extractor_arguments(bridge.env.unwrapped, self.config.features)
        self.model = DQN(
            "MlpPolicy",
            self.env,
            train_freq=(1, "step"),
            replay_buffer_class=FrameReplayBuffer,
            seed=spec.seed,
            device="cpu",
            **arguments,
        )
        self.own_settings = own_settings(threads_for(sum(one.numel() for one in self.model.q_net.parameters())))
        self.model.set_logger(Logger(folder=None, output_formats=[]))  # the run logs, not SB3
        self._epsilon: float | None = None  # of the last round, where it was only played

    @classmethod
    def check(cls, preset: str, hyperparameters: dict[str, Any]) -> None:
        """See `Agent.check`; presets of dqn-native that SB3 cannot play are refused by what they need."""
        if preset not in PRESETS:
            super().check(preset, hyperparameters)
        sb3_arguments(make_dqn_config(preset, 1, hyperparameters), 1)

    # --- learning ---------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """See `Agent.steps`."""
        return self.model.num_timesteps

    @property
    def replay(self) -> FrameReplayBuffer:
        """The last transitions."""
        assert isinstance(self.model.replay_buffer, FrameReplayBuffer)
        return self.model.replay_buffer

    @in_own_settings
    def play_round(
        self, seeds: Sequence[int], exploration: float | None, show: Callable[[Progress], None]
    ) -> list[Episode]:
        """See `Agent.play_round`."""
        self._epsilon = exploration
        self.bridge.seed_rows(seeds)
        if exploration is None:
            self._learn(seeds, show)
        else:
            self._only_play(seeds, exploration, show)
        return self.recorder.episodes

    def _learn(self, seeds: Sequence[int], show: Callable[[Progress], None]) -> None:
        """The loop of `model.learn`, for one whole episode of every row."""
        model = self.model
        # Resets the environment, which the seeds given are then spent on, so it goes first.
        callback = _ShowProgress(lambda infos: show(self._progress(infos)))
        _, callback_list = model._setup_learn(self.total - model.num_timesteps, callback, reset_num_timesteps=False)
        set_random_seed(seeds[0])
        model.action_space.seed(seeds[0])
        self.bridge.seed_rows(seeds)
        model._last_obs = self.env.reset()
        self.replay.start_round()
        while not self._round_is_over():
            before = model.num_timesteps
            model.collect_rollouts(
                self.env, callback_list, EVERY_STEP, self.replay, learning_starts=model.learning_starts
            )
            updates = model.num_timesteps // self.config.update_every - before // self.config.update_every
            if updates > 0 and model.num_timesteps > model.learning_starts:
                model.train(updates * model.gradient_steps, model.batch_size)

    def _only_play(self, seeds: Sequence[int], epsilon: float, show: Callable[[Progress], None]) -> None:
        rng = np.random.default_rng(seeds[0])
        observations: Any = self.env.reset()
        while not self._round_is_over():
            actions, _ = self.model.predict(observations, deterministic=True)  # (N,)
            random = rng.integers(len(self.facts.action_names), size=len(actions))
            chosen = np.where(rng.random(len(actions)) < epsilon, random, actions)
            observations, _, _, infos = self.env.step(chosen)
            show(self._progress(infos))

    def _round_is_over(self) -> bool:
        return all(episode.over for episode in self.recorder.episodes)

    def _progress(self, infos: Sequence[dict[str, Any]]) -> Progress:
        accuracy = float(np.mean([info["validation_accuracy"] for info in infos]))
        return Progress(self.steps, accuracy, self.metrics())

    def metrics(self) -> dict[str, float]:
        """epsilon: the share of random actions."""
        return {"epsilon": self.model.exploration_rate if self._epsilon is None else self._epsilon}

    def judge_episode(self, episode: Episode) -> dict[str, float]:
        """mean_max_q and mean_td_error, see `qan_agents.dqn.values.judge_episode`."""
        return judge_episode(self, episode.arrays(), self.history, self.config.gamma)

    # --- values -----------------------------------------------------------------------------------------------------

    @in_own_settings
    @torch.no_grad()
    def values(self, observations: Tensor) -> Tensor:
        """Q(s, a), (B, actions), of (B, history, D)."""
        values: Tensor = self.model.q_net(observations)
        return values

    @in_own_settings
    @torch.no_grad()
    def target_values(self, observations: Tensor) -> Tensor:
        """The same by the target network."""
        values: Tensor = self.model.q_net_target(observations)
        return values

    def policy(self) -> GreedyPolicy:
        """See `Agent.policy`."""
        return GreedyPolicy(self)

    # --- files ------------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """See `Agent.save`."""
        content = io.BytesIO()
        self.model.save(content)
        write_bytes(path, content.getvalue())

    def load(self, path: Path) -> None:
        """See `Agent.load`."""
        with reading(path, "of this agent"):
            self.model.set_parameters(str(path), device="cpu")
            data = _saved_data(path)
            vars(self.model).update({name: type(vars(self.model)[name])(data[name]) for name in RESTORED})

    def refill_replay(self, rounds: Iterable[Sequence[Arrays]]) -> None:
        """See `Agent.refill_replay`."""
        for episodes in rounds:
            add_round(self.replay, episodes, self.history)

    def close(self) -> None:
        """See `Agent.close`."""
        self.env.close()


class _ShowProgress(BaseCallback):
    """Calls a function with the infos of every step."""

    def __init__(self, show: Callable[[list[dict[str, Any]]], None]) -> None:
        super().__init__()
        self.show = show

    def _on_step(self) -> bool:
        self.show(self.locals["infos"])
        return True


def _saved_data(path: Path) -> dict[str, Any]:
    """The attributes in a file of SB3's, as plain JSON; what is pickled in it stays text."""
    with zipfile.ZipFile(path) as archive:
        data: dict[str, Any] = json.loads(archive.read("data"))
    return data


def sb3_arguments(config: DQNConfig, steps: int) -> dict[str, Any]:
    """The hyperparameters as arguments of SB3's DQN, without `train_freq`: `SB3DQN` counts the updates itself.

    Args:
        config: the hyperparameters.
        steps: of the whole training.

    Raises:
        ValueError: SB3's DQN does not have what they ask for.
    """
    plain = DQNConfig()
    asked = [name for name in MISSING if getattr(config, name) != getattr(plain, name)]
    if asked:
        raise ValueError(
            f"Stable-Baselines3's DQN has no {', '.join(asked)}: use --agent dqn-native, or another preset"
        )
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


register_agent("dqn", SB3DQN)
