"""The bundled DQN in a run: rounds of episodes on one device, recorded there and read when they are over."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor

from qan_agents.dqn.agent import DQN, SHOW_EVERY, DQNConfig, Game, Outcome, Stream
from qan_agents.experiments.learner import GameFacts, Progress
from qan_agents.policies.rollout import STEP_COLUMNS, Episode

INFO_COLUMNS = tuple(name for name in STEP_COLUMNS if name not in ("step", "action", "reward"))


class BundledLearner:
    """The bundled DQN as a `Learner`."""

    def __init__(
        self,
        env: str,
        env_kwargs: dict[str, Any],
        num_envs: int,
        seed: int,
        configure: Callable[[int], DQNConfig],
    ) -> None:
        """A fresh agent, on the device of its environment.

        Args:
            env: the id.
            env_kwargs: of it.
            num_envs: N.
            seed: of the initial weights.
            configure: the hyperparameters, given the actions of an episode.

        Raises:
            ValueError: the hyperparameters do not go with the game.
        """
        made = gym.make_vec(
            env, num_envs=num_envs, output="torch", autoreset_mode=AutoresetMode.NEXT_STEP, **env_kwargs
        )
        self.env = made.unwrapped
        self.facts = GameFacts(self.env.config, self.env.training.parts.fingerprint, self.env.episode_length)
        self.config = configure(self.env.episode_length)
        self.device = self.env.training.device
        self.game = Game.of(self.env)
        self.actions = self.game.actions
        self.agent = DQN(self.config, self.game, str(self.device), seed)
        self.stream = Stream(self.env, self.device)

    @property
    def steps(self) -> int:
        """See `Learner.steps`."""
        return self.agent.steps

    @property
    def exploration(self) -> float:
        """See `Learner.exploration`."""
        return self.agent.exploration

    def play_round(
        self, seeds: Sequence[int], epsilon: float | None, show: Callable[[Progress], None]
    ) -> list[Episode]:
        """See `Learner.play_round`."""
        agent = self.agent
        agent.generator.manual_seed(seeds[0])
        frames = self.stream.reset(list(seeds))
        agent.begin(frames)
        record = Record(frames, self.facts.episode_length)
        over, shown = np.zeros(len(seeds), bool), 0.0
        while not over.all():
            outcome = self.stream.step(agent.act(epsilon))
            now = record.add(agent.actions, outcome)
            # What rows play while they wait for the others is not of the round; and where only played, nothing is.
            agent.remember(outcome._replace(played=now if epsilon is None else torch.zeros_like(now)))
            if epsilon is None:
                agent.learn()
            over |= self.env.over
            if time.perf_counter() - shown > SHOW_EVERY:
                shown = time.perf_counter()
                random = agent.exploration if epsilon is None else epsilon
                show(Progress(agent.steps, random, float(outcome.infos["validation_accuracy"].mean())))
        return record.episodes()

    def values(self, observations: Tensor) -> Tensor:
        """See `Learner.values`."""
        return self.agent.values(observations)

    def target_values(self, observations: Tensor) -> Tensor:
        """See `Learner.target_values`."""
        return self.agent.target_values(observations)

    def save(self, path: Path, episodes: int) -> None:
        """See `Learner.save`."""
        self.agent.save(path, episodes=episodes)

    def load(self, path: Path) -> None:
        """See `Learner.load`."""
        agent = DQN.load(path, str(self.device))
        if agent.game != self.game:
            raise ValueError(f"{path}: is of an agent for {agent.game}, not for {self.game}")
        self.agent, self.config = agent, agent.config

    def put_back(self, rounds: Iterable[Sequence[dict[str, NDArray[Any]]]]) -> None:
        """See `Learner.put_back`."""
        agent = self.agent
        agent.begin(torch.zeros(self.env.num_envs, *self.game.shape, device=self.device))  # there is a replay now
        priorities, highest = agent.replay.priorities.clone(), agent.replay.highest.clone()
        for arrays in rounds:
            lengths = torch.tensor([len(one["actions"]) for one in arrays])
            frames, actions, rewards = (_padded(arrays, name) for name in ("frames", "actions", "rewards"))
            gone = torch.tensor([bool(one["terminated"]) for one in arrays])
            for t in range(int(lengths.max())):
                last = lengths == t + 1
                step = (frames[t], actions[t], rewards[t], gone & last, last, frames[t + 1])
                age, played = torch.full_like(lengths, t), lengths > t
                agent.replay.add(*(values.to(self.device) for values in (*step, age, played)))
        agent.replay.priorities.copy_(priorities)  # as they were saved
        agent.replay.highest.copy_(highest)

    def close(self) -> None:
        """See `Learner.close`."""
        self.env.close()


def _padded(arrays: Sequence[dict[str, NDArray[Any]]], name: str) -> Tensor:
    """(longest, N, ...) of arrays of different lengths."""
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(one[name]) for one in arrays])


class Record:
    """A round on the device: (T, N) of everything, with T the longest that an episode can be."""

    def __init__(self, frames: Tensor, longest: int) -> None:
        """frames: (N, D) the first; longest: T."""
        num_envs, device = len(frames), frames.device
        self.length = 0
        self.frames = torch.zeros(longest + 1, *frames.shape, dtype=frames.dtype, device=device)
        self.frames[0] = frames
        self.actions = torch.zeros(longest, num_envs, dtype=torch.int64, device=device)
        self.rewards = torch.zeros(longest, num_envs, device=device)
        self.infos = torch.zeros(longest, len(INFO_COLUMNS), num_envs, dtype=torch.float64, device=device)
        self.flags = torch.zeros(longest, 2, num_envs, dtype=torch.bool, device=device)  # played, terminated
        self.over = torch.zeros(num_envs, dtype=torch.bool, device=device)
        self.final: dict[str, Tensor] = {}
        self.types: dict[str, type] = {}

    def add(self, actions: Tensor, outcome: Outcome) -> Tensor:
        """Write a step down; returns (N,) the rows whose episode was still going on."""
        now = ~self.over
        t, infos = self.length, outcome.infos
        self.actions[t], self.rewards[t], self.frames[t + 1] = actions, outcome.rewards, outcome.following
        self.infos[t] = torch.stack([infos[name].double() for name in INFO_COLUMNS])
        self.flags[t, 0], self.flags[t, 1] = now, outcome.terminated
        if "test_loss" in infos:  # some episode has ended
            ends = now & outcome.ended
            for name, value in infos.items():
                if not name.startswith("_"):
                    self.types[name] = float if value.is_floating_point() else int
                    before = self.final.get(name, torch.zeros_like(value))
                    self.final[name] = torch.where(ends, value, before)
        self.over = self.over | outcome.ended
        self.length += 1
        return now

    def episodes(self) -> list[Episode]:
        """One per row, on the host."""
        count = self.length
        frames, actions, rewards, infos, flags = (
            values.cpu().numpy()
            for values in (
                self.frames[: count + 1],
                self.actions[:count],
                self.rewards[:count],
                self.infos[:count],
                self.flags[:count],
            )
        )
        final = {name: value.tolist() for name, value in self.final.items()}
        episodes = []
        for row in range(actions.shape[1]):
            steps = int(flags[:, 0, row].sum())
            episode = Episode(frames=list(frames[: steps + 1, row]))
            for t in range(steps):
                info = dict(zip(INFO_COLUMNS, infos[t, :, row].tolist(), strict=True))
                whole = {name: self.types[name](value) for name, value in info.items()}
                episode.add(int(actions[t, row]), float(rewards[t, row]), whole)
            episode.actions = actions[:steps, row].tolist()
            episode.end({name: value[row] for name, value in final.items()}, bool(flags[steps - 1, 1, row]))
            episodes.append(episode)
        return episodes
