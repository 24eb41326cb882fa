"""The bundled DQN: environment, replay, networks, exploration and updates on one device, as tensors.

    agent = DQN(DQNConfig(), Game.of(env), device="cuda")
    finished = train(agent, env, steps=50_000)

plays any Gymnasium vector environment with a Box of observations and Discrete actions. On CUDA acting, the replay's
writing and the updates are captured graphs, and nothing here makes the host wait.

Sources: Mnih et al., Nature 518 (2015); double DQN: arXiv:1509.06461; dueling: arXiv:1511.06581; prioritized replay:
arXiv:1511.05952; n-step: arXiv:1710.02298; quantiles: arXiv:1710.10044.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.adam import adam

from qan_agents.dqn.features import FEATURES
from qan_agents.dqn.perceptron import Perceptron
from qan_agents.dqn.replay import Batch, Replay, as_floats
from qan_agents.dqn.rmsprop import rmsprop_
from qan_gym.utils.cuda_graph import CapturedGraph
from qan_gym.utils.files import load_arrays, save_arrays

MOMENTS = {"adam": ("exp_avg", "exp_avg_sq"), "rmsprop": ("mean", "mean_square")}  # by optimizer, one of each weight
STORAGE = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8}
GROUP = 32  # updates whose transitions are drawn together, at most
SHOW_EVERY = 0.1  # seconds: showing progress makes the host wait for the device


# --- settings -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DQNConfig:
    """The hyperparameters.

    "Steps" are steps of single environments: a vector environment of N makes N at once. The updates that are due after
    one draw their transitions together, up to GROUP updates at a time, and their priorities change together.
    """

    history: int = 1  # last frames of an observation
    features: str = "flat"  # what reads them: flat, filters (the paper's convolution), score-line, scores
    hidden: tuple[int, ...] = (64, 64)  # units of the layers that follow
    layer_norm: bool = False  # after each of them
    dueling: bool = False  # the last of them and the output twice: for the state's value, and the actions' advantages
    quantiles: int = 1  # of the return, that are learned; 1: its mean
    double: bool = False  # the network chooses the action that the target network values
    gamma: float = 0.99  # discount per step
    n_step: int = 1  # rewards before the value of what follows
    clip_td_error: float | None = 1.0  # Huber's threshold; None: the squared error (not with quantiles)
    optimizer: str = "adam"  # or rmsprop: DeepMind's
    learning_rate: float = 1e-3
    optimizer_epsilon: float = 1e-8  # what keeps the optimizer's denominator from 0
    max_grad_norm: float | None = 10.0  # longer gradients are shortened to it
    batch_size: int = 64  # transitions of an update
    update_every: int = 1  # steps between which there are
    gradient_steps: int = 1  # so many updates
    learning_starts: int = 1_000  # steps before the first update, all random
    target_update_interval: int = 500  # steps between which the target network moves towards the network,
    tau: float = 1.0  # by this share of the way
    buffer_size: int = 100_000  # transitions in the replay
    storage: str = "float32"  # of their frames; or float16, or uint8 for environments whose frames are bytes
    priority_exponent: float = 0.0  # of the TD errors when transitions are drawn; 0: all alike
    importance_initial: float = 0.4  # exponent of the weights that correct for priorities, rising to 1
    importance_steps: int = 50_000  # after so many steps
    exploration_initial: float = 1.0  # share of random actions, falling to
    exploration_final: float = 0.05
    exploration_steps: int = 10_000  # after so many steps

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ValueError: a setting is out of its range; the message says which.
        """
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name in ("clip_td_error", "max_grad_norm"):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"{name} must be a number from {low:g} to {high:g}, not {value!r}")
        for name in ("layer_norm", "dueling", "double"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, not {getattr(self, name)!r}")
        for name, known in {"features": FEATURES, "optimizer": MOMENTS, "storage": STORAGE}.items():
            if str(getattr(self, name)) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; there are {', '.join(known)}")
        if not isinstance(self.hidden, list | tuple) or not all(_is_count(units) for units in self.hidden):
            raise ValueError(f"hidden must be a list of numbers of units, not {self.hidden!r}")
        object.__setattr__(self, "hidden", tuple(self.hidden))  # JSON has lists
        if self.quantiles > 1 and self.clip_td_error is None:
            raise ValueError("quantiles need clip_td_error: it is the threshold of their Huber loss")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


_LEAST = {
    **dict.fromkeys(("history", "quantiles", "n_step", "batch_size", "update_every", "gradient_steps"), 1),
    **dict.fromkeys(("target_update_interval", "buffer_size", "importance_steps", "exploration_steps"), 1),
    "learning_starts": 0,
}
_TINY, _HUGE = 1e-30, 1e30
_RANGES = {
    **dict.fromkeys(("gamma", "importance_initial", "exploration_initial", "exploration_final"), (0, 1)),
    **dict.fromkeys(("clip_td_error", "learning_rate", "optimizer_epsilon", "max_grad_norm"), (_TINY, _HUGE)),
    "tau": (_TINY, 1),
    "priority_exponent": (0, 1),
}


@dataclass(frozen=True)
class Game:
    """What an agent has to know of an environment.

    Attributes:
        shape: of a frame.
        dtype: of a frame.
        actions: how many.
        screen: (rows, columns) of the frame where the environment is qan-gym's, else (1, its size).
        score_line: the last of these rows is the score line.
    """

    shape: tuple[int, ...]
    dtype: str
    actions: int
    screen: tuple[int, int]
    score_line: bool

    def __post_init__(self) -> None:
        """JSON has lists."""
        for name in ("shape", "screen"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @classmethod
    def of(cls, env: VectorEnv) -> "Game":
        """The game of an environment.

        Raises:
            ValueError: the spaces are not a Box and a Discrete.
        """
        seen, done = env.single_observation_space, env.single_action_space
        if not isinstance(seen, gym.spaces.Box):
            raise ValueError(f"DQN needs a Box of observations, not {seen}: wrap FlattenObservation around it")
        if not isinstance(done, gym.spaces.Discrete):
            raise ValueError(f"DQN needs Discrete actions, not {done}")
        rows, columns = getattr(env.unwrapped, "screen_shape", (1, math.prod(seen.shape)))
        config = getattr(env.unwrapped, "config", None)
        score_line = getattr(config, "observation", None) == "screen"
        return cls(tuple(seen.shape), str(seen.dtype), int(done.n), (int(rows), int(columns)), score_line)

    def require(self, config: DQNConfig) -> None:
        """Refuse settings that do not go with the game.

        Raises:
            ValueError: which, and why.
        """
        if config.features in ("score-line", "scores") and not self.score_line:
            raise ValueError(
                f"the features {config.features} read the score line: use observation='screen', or other features"
            )
        if config.features == "filters" and min(self.screen) < 6:
            raise ValueError(f"the features filters need a screen of at least 6 x 6, not {self.screen}: use flat")
        if (config.storage == "uint8") != (self.dtype == "uint8"):
            raise ValueError(f"storage {config.storage} does not go with frames of {self.dtype}")


def frame_type(game: Game) -> torch.dtype:
    """Of the frames as the agent handles them."""
    return torch.uint8 if game.dtype == "uint8" else torch.float32


# --- network --------------------------------------------------------------------------------------------------------


class QNetwork(nn.Module):
    """The value of every action, or `quantiles` of its return."""

    def __init__(self, config: DQNConfig, game: Game) -> None:
        """See `DQNConfig`."""
        super().__init__()
        self.features = FEATURES[config.features](config.history, *game.screen)
        self.features_learn = any(True for _ in self.features.parameters())
        self.actions, self.quantiles = game.actions, config.quantiles
        shared = (self.features.size, *config.hidden[:-1]) if config.dueling else (self.features.size,)
        self.trunk = nn.Sequential(*_layers(shared, config.layer_norm))
        own = (shared[-1], *config.hidden[len(shared) - 1 :])  # of a head
        self.advantage = _head(own, self.actions * self.quantiles, config.layer_norm)
        self.value = _head(own, self.quantiles, config.layer_norm) if config.dueling else None

    def forward(self, observations: Tensor) -> Tensor:
        """(B, history, D) -> (B, actions, quantiles)."""
        hidden = self.trunk(self.features(observations))  # (B, units)
        values = self.advantage(hidden).unflatten(1, (self.actions, self.quantiles))  # (B, actions, quantiles)
        if self.value is None:
            return values
        return self.value(hidden)[:, None] + values - values.mean(dim=1, keepdim=True)

    def forward_and_back(self, observations: Tensor) -> tuple[Tensor, Callable[[Tensor], None]]:
        """The same, and what takes its slope and writes the parameters' gradients into their zeroed `grad`."""
        if self.features_learn or not isinstance(self.advantage, Perceptron) or self.value is not None:
            with torch.enable_grad():
                values = self(observations)
            return values.detach(), values.backward
        values, back = self.advantage.forward_and_back(self.features(observations))
        return values.unflatten(1, (self.actions, self.quantiles)), lambda slope: back(slope.flatten(1))


def _layers(sizes: tuple[int, ...], layer_norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), *([nn.LayerNorm(after)] if layer_norm else []), nn.ReLU()]
    return layers


def _head(sizes: tuple[int, ...], outputs: int, layer_norm: bool) -> nn.Sequential:
    if not layer_norm:
        return Perceptron((*sizes, outputs))
    return nn.Sequential(*_layers(sizes, layer_norm), nn.Linear(sizes[-1], outputs))


def _as_vector(network: nn.Module) -> Tensor:
    """All parameters as one vector, whose parts they become: what changes it changes them."""
    vector = parameters_to_vector(network.parameters()).detach().clone()
    vector_to_parameters(vector, network.parameters())
    return vector


# --- playing a vector environment -----------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """A step of N environments, on the agent's device; the leading axis is N.

    Attributes:
        frames: (N, D) to act on next.
        following: (N, D) what followed the action: the last frame of the episode where it ended, else `frames`.
        rewards: (N,).
        terminated: (N,) bool.
        ended: (N,) bool, terminated or truncated.
        played: (N,) bool; False where the step was only the reset of NEXT_STEP mode.
        begins: (N,) bool, `frames` are the first of an episode.
        infos: as the environment gave them.
    """

    frames: Tensor
    following: Tensor
    rewards: Tensor
    terminated: Tensor
    ended: Tensor
    played: Tensor
    begins: Tensor
    infos: dict[str, Any]


class Stream:
    """A vector environment as tensors on a device, its two ways of resetting told apart for good."""

    def __init__(self, env: VectorEnv, device: torch.device) -> None:
        """env: in NEXT_STEP or SAME_STEP mode; of a game that an agent can play.

        Raises:
            ValueError: it is in another mode, or does not say in which.
        """
        mode = env.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
            raise ValueError(
                f"the environment must reset itself (NEXT_STEP or SAME_STEP); its autoreset_mode is {mode}"
            )
        self.env, self.device, self.dtype = env, device, frame_type(Game.of(env))
        self.next_step = mode == AutoresetMode.NEXT_STEP
        self.first_action = int(env.single_action_space.start)  # type: ignore[attr-defined]
        self.as_tensors = getattr(env.unwrapped, "output", "numpy") == "torch"

    def reset(self, seed: int | list[int] | None) -> Tensor:
        """Begin an episode in every row; its first frames (N, D)."""
        frames, _ = self.env.reset(seed=seed)
        self.over = torch.zeros(self.env.num_envs, dtype=torch.bool, device=self.device)
        return self._frames(frames)

    def step(self, actions: Tensor) -> Outcome:
        """actions: (N,) int64, from 0, on the device."""
        actions = actions + self.first_action if self.first_action else actions
        frames, rewards, terminated, truncated, infos = self.env.step(
            actions if self.as_tensors else actions.cpu().numpy()
        )
        seen = self._frames(frames)
        over, done = self._tensor(terminated), self._tensor(terminated) | self._tensor(truncated)
        following, played, begins = seen, ~self.over, self.over
        if self.next_step:
            self.over = done
        else:
            begins = done
            if "final_obs" in infos:
                following = torch.where(done[:, None], self._last(infos, seen), seen)
        return Outcome(seen, following, self._tensor(rewards).float(), over, done, played, begins, infos)

    def _last(self, infos: dict[str, Any], seen: Tensor) -> Tensor:
        last = infos["final_obs"]
        if self.as_tensors:
            return self._frames(last)
        frames = seen.cpu().numpy().copy()
        for row in np.flatnonzero(infos["_final_obs"]):
            frames[row] = np.asarray(last[row]).reshape(-1)
        return self._frames(frames)

    def _frames(self, values: Any) -> Tensor:
        return self._tensor(values).to(self.dtype).flatten(1)  # (N, D)

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(values, device=self.device)


# --- the agent ------------------------------------------------------------------------------------------------------


class Learned(NamedTuple):
    """What an update saw, before it: the loss (), and the TD errors (B,), target minus value."""

    loss: Tensor
    td_errors: Tensor


class DQN:
    """The agent.

    Attributes:
        steps, updates: done so far.
        network, target: see `QNetwork`; `weights` and `target_weights` are their parameters as vectors.
        replay: once it has begun to play.
        facts: what was saved beside it.
    """

    def __init__(self, config: DQNConfig, game: Game, device: str = "cpu", seed: int = 0) -> None:
        """A fresh agent.

        Args:
            config: the hyperparameters.
            game: of the environment that it will play.
            device: as `torch.device` takes it.
            seed: of its initial weights and its exploration.

        Raises:
            ValueError: the hyperparameters do not go with the game.
        """
        game.require(config)
        self.config, self.game, self.device = config, game, torch.device(device)
        self.steps = self.updates = 0
        self.facts: dict[str, Any] = {}
        self.replay: Replay | None = None
        with torch.random.fork_rng(devices=[]):  # drawn on the host: the same on every device
            torch.manual_seed(seed)
            self.network = QNetwork(config, game).to(self.device)
        self.target = QNetwork(config, game).to(self.device).requires_grad_(False)
        self.weights, self.target_weights = _as_vector(self.network), _as_vector(self.target)
        self.target_weights.copy_(self.weights)
        self.gradient = torch.zeros_like(self.weights)  # as one vector: an update is a few operations, not hundreds
        offset = 0
        for parameter in self.network.parameters():
            parameter.grad = self.gradient[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()
        self.moments = {name: torch.zeros_like(self.weights) for name in MOMENTS[config.optimizer]}
        self.optimizer_steps = torch.zeros((), device=self.device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.epsilon = torch.ones((), device=self.device)
        self.importance = torch.ones((), device=self.device)
        levels = torch.arange(config.quantiles, device=self.device)
        self.levels = (levels + 0.5) / config.quantiles  # (quantiles,) of the distribution, their midpoints

    # --- acting -----------------------------------------------------------------------------------------------------

    def begin(self, frames: Tensor) -> None:
        """Begin an episode in every row.

        Args:
            frames: (N, D) the first.

        Raises:
            ValueError: N is another than when it began to play.
        """
        config = self.config
        if self.replay is None:
            self._reserve(len(frames))
        if len(frames) != self.replay.num_envs:
            raise ValueError(f"the agent's replay is of {self.replay.num_envs} environments, not of {len(frames)}")
        self.replay.cut()
        self.stack.copy_(frames[:, None].expand(-1, config.history, -1))
        self.age.zero_()

    def _reserve(self, num_envs: int) -> None:
        """The memory for N environments, and what is done in it."""
        config, device = self.config, self.device
        size, dtype = math.prod(self.game.shape), frame_type(self.game)
        self.replay = Replay(
            config.buffer_size,
            num_envs,
            size,
            config.history,
            config.n_step,
            config.gamma,
            config.priority_exponent,
            STORAGE[config.storage],
            device,
        )
        self.stack = torch.zeros(num_envs, config.history, size, dtype=dtype, device=device)
        self.age = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self.actions = torch.zeros(num_envs, dtype=torch.int64, device=device)
        flags = torch.zeros(4, num_envs, dtype=torch.bool, device=device)
        frames = torch.zeros(2, num_envs, size, dtype=dtype, device=device)
        self.outcome = Outcome(*frames, torch.zeros(num_envs, device=device), *flags, infos={})
        self._act, self._write = self._captured(self._choose), self._captured(self._remember)
        self._update = cache(lambda count: self._captured(partial(self._learn_group, count)))  # a graph for each count

    def _captured(self, function: Callable[[], None]) -> Callable[[], None]:
        return CapturedGraph(function, self.generator) if self.device.type == "cuda" else function

    def act(self, epsilon: float | None = None) -> Tensor:
        """Actions (N,) for the rows as they stand, random ones with probability `epsilon`; None: by the schedule."""
        self.epsilon.fill_(self.exploration if epsilon is None else epsilon)
        self._act()
        return self.actions

    @property
    def exploration(self) -> float:
        """The share of random actions now."""
        config = self.config
        if self.steps < config.learning_starts:
            return 1.0
        return _between(config.exploration_initial, config.exploration_final, self.steps / config.exploration_steps)

    def _choose(self) -> None:
        best = self.values(as_floats(self.stack)).argmax(dim=1)  # (N,)
        chance = torch.rand(best.shape, generator=self.generator, device=self.device)
        other = torch.randint(self.game.actions, best.shape, generator=self.generator, device=self.device)
        torch.where(chance < self.epsilon, other, best, out=self.actions)

    @torch.no_grad()
    def values(self, observations: Tensor) -> Tensor:
        """Q(s, a), (B, actions), of float observations (B, history, D)."""
        return self.network(observations).mean(dim=2)

    @torch.no_grad()
    def target_values(self, observations: Tensor) -> Tensor:
        """The same by the target network."""
        return self.target(observations).mean(dim=2)

    # --- remembering ------------------------------------------------------------------------------------------------

    def remember(self, outcome: Outcome) -> None:
        """Keep what came of the last actions, and go on to the next frames."""
        if self.device.type == "cuda":  # where the graph looks for it
            for mine, new in zip(self.outcome[:-1], outcome[:-1], strict=True):
                mine.copy_(new)
        else:
            self.outcome = outcome
        self._write()

    def _remember(self) -> None:
        new = self.outcome
        self.replay.add(
            self.stack[:, -1],
            self.actions,
            new.rewards,
            new.terminated,
            new.ended,
            new.following,
            self.age,
            new.played,
        )
        first = new.begins
        if self.config.history > 1:
            before = torch.where(first[:, None, None], new.frames[:, None], self.stack[:, 1:])
            self.stack[:, :-1] = before
        self.stack[:, -1] = new.frames
        self.age.add_(1).masked_fill_(first, 0)

    # --- learning ---------------------------------------------------------------------------------------------------

    def learn(self) -> None:
        """Count a step of every environment, and do the updates that are due."""
        config, num_envs = self.config, self.replay.num_envs
        before, self.steps = self.steps, self.steps + num_envs
        if self.steps // num_envs % max(config.target_update_interval // num_envs, 1) == 0:
            self.target_weights.lerp_(self.weights, config.tau)
        if self.steps > config.learning_starts:
            self.update((self.steps // config.update_every - before // config.update_every) * config.gradient_steps)

    def update(self, count: int = 1) -> None:
        """So many updates on transitions drawn from the replay."""
        config = self.config
        if config.priority_exponent > 0:
            self.importance.fill_(_between(config.importance_initial, 1.0, self.steps / config.importance_steps))
        self.updates += count
        while count > 0:
            group = min(count, GROUP)
            self._update(group)()
            count -= group

    @torch.no_grad()
    def _learn_group(self, count: int) -> None:
        """Updates whose transitions are drawn together, and valued together where nothing changes in between."""
        config = self.config
        drawn = self.replay.sample(count * config.batch_size, self.importance, self.generator)
        wanted = None if config.double else self._targets(drawn)
        batches = map(Batch, *(values.split(config.batch_size) for values in drawn))
        targets = [None] * count if wanted is None else wanted.split(config.batch_size)
        errors = [self.learn_from(batch, those).td_errors for batch, those in zip(batches, targets, strict=True)]
        if config.priority_exponent > 0:
            self.replay.set_priorities(drawn.places, torch.cat(errors))

    @torch.no_grad()
    def learn_from(self, batch: Batch, wanted: Tensor | None = None) -> Learned:
        """One step of the optimizer; the replay stays as it is.

        Args:
            batch: as drawn from the replay.
            wanted: (B, quantiles) its targets, where they are known.
        """
        config = self.config
        if wanted is None:
            wanted = self._targets(batch)
        self.gradient.zero_()
        values, back = self.network.forward_and_back(batch.observations)  # (B, actions, quantiles)
        index = batch.actions.view(-1, 1, 1).expand(-1, 1, config.quantiles)
        mine = values.gather(1, index).squeeze(1)  # (B, quantiles)
        # The loss's slope is written out: that is less work than having it derived.
        error = wanted - mine
        losses, slopes = self._quantile_loss(mine, wanted) if config.quantiles > 1 else self._loss(error)
        if config.priority_exponent > 0:
            losses, slopes = losses * batch.weights[:, None], slopes * batch.weights[:, None]
        back(torch.zeros_like(values).scatter_(1, index, slopes.div_(len(slopes))[:, None]))
        if config.max_grad_norm is not None:
            self.gradient.mul_(config.max_grad_norm / self.gradient.norm().clamp_(min=config.max_grad_norm))
        self._change_weights()
        return Learned(losses.mean(), error.squeeze(1) if config.quantiles == 1 else error.mean(dim=1))

    def _change_weights(self) -> None:
        config, rate = self.config, {"learning-rate": self.config.learning_rate, "eps": self.config.optimizer_epsilon}
        if config.optimizer == "rmsprop":
            rmsprop_(self.weights, self.gradient, **self.moments, **rate)
            return
        # Torch's, without its class, which takes longer than the step itself.
        moments = ([moment] for moment in self.moments.values())
        capturable = self.device.type == "cuda"
        options = {"amsgrad": False, "maximize": False, "weight_decay": 0.0, "fused": True, "capturable": capturable}
        steps = [self.optimizer_steps]
        adam([self.weights], [self.gradient], *moments, [], steps, beta1=0.9, beta2=0.999, **rate, **options)

    @torch.no_grad()
    def _targets(self, batch: Batch) -> Tensor:
        """r + discount * value of the best action in what follows, (B, quantiles)."""
        following = self.target(batch.following)  # (B, actions, quantiles)
        judge = self.network(batch.following) if self.config.double else following
        best = judge.mean(dim=2).argmax(dim=1)  # (B,)
        value = following.gather(1, best[:, None, None].expand(-1, 1, self.config.quantiles))[:, 0]  # (B, quantiles)
        return batch.rewards[:, None] + batch.discounts[:, None] * value

    def _loss(self, error: Tensor) -> tuple[Tensor, Tensor]:
        """Huber's loss (B, 1), or half the squared TD error, and its slope (B, 1): minus the TD error, clipped."""
        limit = self.config.clip_td_error
        clipped = error if limit is None else error.clamp(-limit, limit)
        return clipped * (error - 0.5 * clipped), -clipped

    def _quantile_loss(self, values: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Equation 10 of arXiv:1710.10044, (B, 1), and its slope (B, quantiles).

        Summed over the learned quantiles, mean over the wanted ones.
        """
        limit = self.config.clip_td_error
        error = wanted[:, None, :] - values[:, :, None]  # (B, learned, wanted)
        clipped = error.clamp(-limit, limit)
        share = (self.levels[:, None] - (error < 0).float()).abs() / limit
        losses = (share * clipped * (error - 0.5 * clipped)).mean(dim=2).sum(dim=1, keepdim=True)
        return losses, -(share * clipped).mean(dim=2)

    # --- files ------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], **facts: Any) -> None:
        """Write everything but the replay's transitions to one safetensors file, atomically; nothing is pickled.

        Args:
            path: of the file.
            facts: JSON-able values that `load` gives back in `facts`.
        """
        arrays = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        arrays |= {f"target/{name}": value for name, value in self.target.state_dict().items()}
        arrays |= {f"optimizer/{name}": value for name, value in self.moments.items()}
        arrays["optimizer_steps"] = self.optimizer_steps
        arrays["generator"] = self.generator.get_state()
        if self.replay is not None and self.config.priority_exponent > 0:
            arrays |= {"priorities": self.replay.priorities, "highest_priority": self.replay.highest}
        about = {
            "format": FORMAT,
            "config": asdict(self.config),
            "game": asdict(self.game),
            "steps": self.steps,
            "updates": self.updates,
            "num_envs": None if self.replay is None else self.replay.num_envs,
            "facts": facts,
        }
        save_arrays(path, {name: value.detach().cpu().numpy() for name, value in arrays.items()}, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str = "cpu") -> "DQN":
        """An agent as `save` left it, with an empty replay; `facts` has what was saved beside it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or of something else.
        """
        arrays, about = load_arrays(path)
        if about.get("format") != FORMAT:
            raise ValueError(f"{path}: not an agent saved by qan_agents.dqn.agent")
        try:
            game = Game(
                **{**about["game"], "shape": tuple(about["game"]["shape"]), "screen": tuple(about["game"]["screen"])}
            )
            agent = cls(DQNConfig(**about["config"]), game, device)
            agent.steps, agent.updates, agent.facts = int(about["steps"]), int(about["updates"]), about["facts"]
            agent._put(arrays, about["num_envs"])
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise ValueError(f"{path}: damaged, or of another version of qan_agents.dqn.agent ({error})") from error
        return agent

    def _put(self, arrays: dict[str, Any], num_envs: int | None) -> None:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}

        def part(folder: str) -> dict[str, Tensor]:
            start = folder + "/"
            return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}

        self.network.load_state_dict(part("network"))
        self.target.load_state_dict(part("target"))
        for name, moment in self.moments.items():
            moment.copy_(tensors[f"optimizer/{name}"])
        self.optimizer_steps.copy_(tensors["optimizer_steps"])
        self.generator.set_state(tensors["generator"])
        if num_envs is not None and self.config.priority_exponent > 0:
            self._reserve(num_envs)
            self.replay.priorities.copy_(tensors["priorities"])
            self.replay.highest.copy_(tensors["highest_priority"])


FORMAT = "qan_agents.dqn 1"


def _between(start: float, end: float, share: float) -> float:
    """From start to end, linearly, and there it stays."""
    return start + min(share, 1.0) * (end - start)


# --- training -------------------------------------------------------------------------------------------------------


class Finished(NamedTuple):
    """An episode that ended while training: after how many steps of all environments, and its undiscounted return."""

    step: int
    total_reward: float


def train(
    agent: DQN, env: VectorEnv, steps: int, seed: int | None = None, show: Callable[[int], None] | None = None
) -> list[Finished]:
    """Let an agent play and learn.

    Args:
        agent: fresh, or trained so far.
        env: the game that it was made for.
        steps: of single environments, to be done now.
        seed: of the environment's first reset; None: as the environment will.
        show: called now and then with the steps done so far.

    Returns:
        The episodes that ended, in their order.

    Raises:
        ValueError: the environment is another game, or does not reset itself.
    """
    if Game.of(env) != agent.game:
        raise ValueError(f"the agent was made for {agent.game}, not for {Game.of(env)}")
    stream = Stream(env, agent.device)
    agent.begin(stream.reset(seed))
    rounds = -(-steps // env.num_envs)
    # Of each step, (rounds, N): kept on the device and read at the end.
    ended = torch.zeros(rounds, env.num_envs, dtype=torch.bool, device=agent.device)
    totals = torch.zeros(rounds, env.num_envs, device=agent.device)
    total = torch.zeros(env.num_envs, device=agent.device)
    before, shown = agent.steps, 0.0
    for step in range(rounds):
        outcome = stream.step(agent.act())
        agent.remember(outcome)
        agent.learn()
        total += outcome.rewards * outcome.played
        totals[step], ended[step] = total, outcome.ended
        total.masked_fill_(outcome.ended, 0.0)
        if show is not None and time.perf_counter() - shown > SHOW_EVERY:
            shown = time.perf_counter()
            show(agent.steps)
    where = ended.cpu().numpy()
    when = np.nonzero(where)[0]
    returns = totals.cpu().numpy()[where]
    return [
        Finished(before + (int(step) + 1) * env.num_envs, float(value))
        for step, value in zip(when, returns, strict=True)
    ]
