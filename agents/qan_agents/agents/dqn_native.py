"""The bundled DQN as the agent of a run, on the device of its environment: a CPU or a CUDA device."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from qan_agents.dqn.agent import DQN
from qan_agents.dqn.ensemble import Ensemble
from qan_agents.dqn.presets import PRESETS, make_dqn_config
from qan_agents.dqn.training import SHOW_EVERY
from qan_agents.dqn.values import GreedyPolicy, judge_episode
from qan_agents.dqn.vector_env import EnvInterface, TensorVectorEnv, Transitions
from qan_agents.experiments.agent import (
    Agent,
    AgentSpec,
    Arrays,
    Progress,
    register_agent,
)
from qan_agents.policies.rollout import Episode, recorded_names
from qan_gym.utils.own_settings import in_own_settings
from qan_gym.vector_env import QanVectorEnv


class NativeDQN(Agent):
    """The bundled DQN, with everything that `DQNConfig` has.

    Attributes:
        config: the hyperparameters.
        agent: the DQN itself, or an ensemble of them.
        device: of its environment.
    """

    presets = tuple(PRESETS)
    model_suffix = ".safetensors"
    learns_from_replay = True

    def __init__(self, spec: AgentSpec) -> None:
        """See `Agent.__init__`."""
        env = self._make_env(spec)
        assert isinstance(env.unwrapped, QanVectorEnv)
        self.env = env.unwrapped
        self.training = self.env.training
        self.device, self.interface = self.training.device, EnvInterface.of(env)
        self._adopt(self._fresh(spec, spec.episodes * self.facts.episode_length))
        self.tensor_env = TensorVectorEnv(env, self.device)
        self._epsilon: float | None = None  # of the last round, where it was only played

    def _make_env(self, spec: AgentSpec) -> VectorEnv[Any, Any, Any]:
        mode = AutoresetMode.NEXT_STEP
        return gym.make_vec(spec.env, num_envs=spec.num_envs, output="torch", autoreset_mode=mode, **spec.env_kwargs)

    def _fresh(self, spec: AgentSpec, steps: int) -> DQN | Ensemble:
        """What learns, before it has; steps: of the whole training."""
        config = make_dqn_config(spec.preset, steps, spec.hyperparameters, self.interface.score_line > 0)
        return DQN(config, self.interface, str(self.device), spec.seed)

    def _adopt(self, agent: DQN | Ensemble) -> None:
        self.agent, self.config = agent, agent.config
        self.settings, self.history = asdict(agent.config), agent.config.history
        self.own_settings = agent.own_settings

    @classmethod
    def check(cls, preset: str, hyperparameters: dict[str, Any]) -> None:
        """See `Agent.check`."""
        make_dqn_config(preset, 1, hyperparameters)

    # --- learning ---------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """See `Agent.steps`."""
        return self.agent.steps

    @in_own_settings
    def play_round(
        self, seeds: Sequence[int], exploration: float | None, show: Callable[[Progress], None]
    ) -> list[Episode]:
        """See `Agent.play_round`."""
        agent, self._epsilon = self.agent, exploration
        agent.reseed(seeds[0])
        frames = self.tensor_env.reset(list(seeds))
        agent.begin(frames)
        names = recorded_names(self.training.parts.game.hyperparameters)
        record = RoundRecord(frames, agent.actions, self.facts.episode_length, names)
        over, shown = self.env.over, 0.0
        while not over.all():
            transitions = self.tensor_env.step(agent.act(exploration))
            in_round = record.add(agent.actions, transitions, some_ended=bool(self.env.over.any()))
            # What rows play while they wait for the others is not learned from; nor is a round that is only played.
            learned = in_round if exploration is None else torch.zeros_like(in_round)
            agent.remember(transitions._replace(valid=learned))
            if exploration is None:
                agent.learn()
            over |= self.env.over
            if time.perf_counter() - shown > SHOW_EVERY:
                shown = time.perf_counter()
                accuracy = float(transitions.infos["validation_accuracy"].mean())
                show(Progress(agent.steps, accuracy, self.metrics()))
        return record.episodes()

    def metrics(self) -> dict[str, float]:
        """epsilon: the share of random actions."""
        return {"epsilon": self.agent.exploration if self._epsilon is None else self._epsilon}

    def judge_episode(self, episode: Episode) -> dict[str, float]:
        """mean_max_q and mean_td_error, see `qan_agents.dqn.values.judge_episode`."""
        return judge_episode(self, episode.arrays(), self.history, self.config.gamma)

    # --- values -----------------------------------------------------------------------------------------------------

    def values(self, observations: Tensor) -> Tensor:
        """Q(s, a), (B, actions), of (B, history, D)."""
        return self.agent.values(observations)

    def target_values(self, observations: Tensor) -> Tensor:
        """The same by the target network."""
        return self.agent.target_values(observations)

    def policy(self) -> GreedyPolicy:
        """See `Agent.policy`."""
        return GreedyPolicy(self)

    # --- files ------------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """See `Agent.save`."""
        self.agent.save(path)

    def load(self, path: Path) -> None:
        """See `Agent.load`."""
        agent = DQN.load(path, str(self.device))
        if agent.interface != self.interface:
            raise ValueError(f"{path}: is of an agent for {agent.interface}, not for {self.interface}")
        self._adopt(agent)

    @in_own_settings
    def refill_replay(self, rounds: Iterable[Sequence[Arrays]]) -> None:
        """See `Agent.refill_replay`."""
        learners, saved = self.agent.members, []
        for one in learners:
            one.begin(torch.zeros(self.env.num_envs, *self.interface.shape, device=self.device))  # reserves the replay
            saved.append((one.replay.priorities.clone(), one.replay.max_priority.clone()))
        for episodes in rounds:
            lengths = torch.tensor([len(arrays["actions"]) for arrays in episodes])
            frames, actions, rewards = (_padded(episodes, name) for name in ("frames", "actions", "rewards"))
            terminated = torch.tensor([bool(arrays["terminated"]) for arrays in episodes])
            for t in range(int(lengths.max())):
                last = lengths == t + 1
                step = (frames[t], actions[t], rewards[t], terminated & last, last, frames[t + 1])
                age, valid = torch.full_like(lengths, t), lengths > t
                on_device = [values.to(self.device) for values in (*step, age, valid)]
                for one in learners:
                    one.replay.add(*on_device)
        for one, (priorities, max_priority) in zip(learners, saved, strict=True):
            one.replay.priorities.copy_(priorities)  # as they were saved
            one.replay.max_priority.copy_(max_priority)

    def close(self) -> None:
        """See `Agent.close`."""
        self.env.close()


def _padded(episodes: Sequence[Arrays], name: str) -> Tensor:
    """(longest, N, ...) of arrays of different lengths."""
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(arrays[name]) for arrays in episodes])


class RoundRecord:
    """A round on the device, (T, N) of everything, with T the longest that an episode can be; read when it is over."""

    def __init__(self, frames: Tensor, actions: Tensor, longest: int, names: tuple[str, ...]) -> None:
        """Reserve the memory.

        Args:
            frames: (N, D) the first of each episode.
            actions: (N, ...), of the kind that will be recorded.
            longest: T.
            names: the scalars of the infos that are recorded.
        """
        num_envs, device = len(frames), frames.device
        self.names = names
        self.length = 0
        self.frames = torch.zeros(longest + 1, *frames.shape, dtype=frames.dtype, device=device)
        self.frames[0] = frames
        self.actions = torch.zeros(longest, *actions.shape, dtype=actions.dtype, device=device)
        self.rewards = torch.zeros(longest, num_envs, device=device)
        self.infos = torch.zeros(longest, len(names), num_envs, dtype=torch.float64, device=device)
        self.in_round = torch.zeros(longest, num_envs, dtype=torch.bool, device=device)
        self.terminated = torch.zeros(longest, num_envs, dtype=torch.bool, device=device)
        self.over = torch.zeros(num_envs, dtype=torch.bool, device=device)
        self.final: dict[str, Tensor] = {}
        self.types: dict[str, type] = {}

    def add(self, actions: Tensor, transitions: Transitions, some_ended: bool) -> Tensor:
        """Write a step; returns (N,) bool, the rows whose episode was not over before it.

        some_ended: whether an episode has ended with it, which the host knows without asking the device.
        """
        in_round = ~self.over
        t, infos = self.length, transitions.infos
        self.actions[t], self.rewards[t], self.frames[t + 1] = actions, transitions.rewards, transitions.next_frames
        self.infos[t] = torch.stack([infos[name].double() for name in self.names])
        self.in_round[t], self.terminated[t] = in_round, transitions.terminated
        if some_ended:
            ends = in_round & transitions.ended
            for name, value in infos.items():
                if not name.startswith("_") and not isinstance(value, dict):
                    self.types[name] = float if value.is_floating_point() else int
                    before = self.final.get(name, torch.zeros_like(value))
                    self.final[name] = torch.where(ends, value, before)
        self.over = self.over | transitions.ended
        self.length += 1
        return in_round

    def episodes(self) -> list[Episode]:
        """One per row, on the host."""
        count = self.length
        frames, actions, rewards, infos, in_round, terminated = (
            values.cpu().numpy()
            for values in (
                self.frames[: count + 1],
                self.actions[:count],
                self.rewards[:count],
                self.infos[:count],
                self.in_round[:count],
                self.terminated[:count],
            )
        )
        final = {name: value.tolist() for name, value in self.final.items()}
        episodes = []
        for row in range(actions.shape[1]):
            steps = int(in_round[:, row].sum())
            episode = Episode(frames=list(frames[: steps + 1, row]))
            for t in range(steps):
                info = dict(zip(self.names, infos[t, :, row].tolist(), strict=True))
                typed = {name: self.types[name](value) for name, value in info.items()}
                episode.add(actions[t, row].tolist(), float(rewards[t, row]), typed)
            episode.actions = actions[:steps, row].tolist()
            episode.end({name: value[row] for name, value in final.items()}, bool(terminated[steps - 1, row]))
            episodes.append(episode)
        return episodes


register_agent("dqn-native", NativeDQN)
