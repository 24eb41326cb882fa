"""A certificate that the actions of an environment matter beyond seed noise.

Extreme sequences of actions are played on the same seeds: each of (up to ten) actions throughout, and all of them in
turn. All begin with the same action, so that an environment which listens to its first action only, as the original's
did, has nothing to show. It is certified if two things hold:

- The sequences differ by more than chance: p < 0.01 in Friedman's test (1937) with the seeds as blocks. It looks at
  ranks within a seed, so it asks nothing of how outcomes are distributed, and a diverged one is just the last.
- They differ by more than the seeds do: the standard deviation of the sequences' means is above that of the seeds
  within a sequence (pooled). A difference may be certain and yet too small for an agent to find among the seeds.

The outcome is ln(validation loss) in the games of qan-gym, elsewhere the undiscounted return.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray
from scipy.stats import friedmanchisquare

from qan_gym.core.reward import safe_log
from qan_gym.env import QanEnv
from qan_gym.registration import ENTRY_POINTS, VECTOR_ENTRY_POINT

LEVEL = 0.01  # p has to be below
RATIO = 1.0  # and the spread of the sequences over that of the seeds above
MOST_ACTIONS = 10  # of a Discrete space that are tried
LEAST_SEEDS = 5  # with three sequences p = 0.0067 at best; with four seeds, 0.018
LONGEST = 100_000  # steps of an episode that may have no end


@dataclass(frozen=True, eq=False)
class Certificate:
    """What was played, and what it says.

    Attributes:
        env: the id.
        outcome: what was measured.
        first: the action that every sequence begins with.
        sequences: their names, S.
        outcomes: (S, seeds).
    """

    env: str
    outcome: str
    first: str
    sequences: tuple[str, ...]
    outcomes: NDArray[np.float64]

    @property
    def identical(self) -> bool:
        """On each seed, all sequences have the same outcome, bit for bit."""
        return bool((self.outcomes == self.outcomes[0]).all())

    @property
    def between_sequences(self) -> float:
        """The standard deviation of the sequences' means over the seeds."""
        return float(self.outcomes.mean(axis=1).std(ddof=1))

    @property
    def between_seeds(self) -> float:
        """The standard deviation of the seeds within a sequence, pooled over the sequences."""
        return math.sqrt(self.outcomes.var(axis=1, ddof=1).mean())

    @property
    def ratio(self) -> float:
        """The spread of the sequences over that of the seeds; inf where the seeds change nothing."""
        if self.identical:
            return 0.0
        return self.between_sequences / self.between_seeds if self.between_seeds > 0 else math.inf

    @property
    def p_value(self) -> float:
        """Of Friedman's test: the sequences are interchangeable on every seed."""
        return 1.0 if self.identical else float(friedmanchisquare(*self.outcomes).pvalue)

    @property
    def certified(self) -> bool:
        """See the module."""
        return self.p_value < LEVEL and self.ratio > RATIO

    @property
    def verdict(self) -> str:
        """In a sentence."""
        if self.certified:
            return f"certified: the actions of {self.env} matter beyond seed noise"
        if self.identical:
            return (
                f"not certified: the actions of {self.env} change nothing: whatever is played after the first, the "
                f"{self.outcome} is the same, bit for bit, on every seed"
            )
        reasons = []
        if self.p_value >= LEVEL:
            reasons.append(f"the sequences differ by no more than chance (p = {self.p_value:.2g})")
        if self.ratio <= RATIO:
            reasons.append(f"the spread of the sequences is only {self.ratio:.2f} times that of the seeds")
        return f"not certified: {self.env}: {', and '.join(reasons)}"


@dataclass(frozen=True)
class Game:
    """What is played.

    Attributes:
        env_id, kwargs: of `gym.make`.
        limit: steps of an episode that are played at most.
        endless: nobody has said that the limit may come before the end.
        is_qan: a game of qan-gym.
        lockstep: its rows in qan-gym's vector environment are the single environment.
        actions: the extreme ones, by name; the last begins every sequence.
    """

    env_id: str
    kwargs: dict[str, Any]
    limit: int
    endless: bool
    is_qan: bool
    lockstep: bool
    actions: dict[str, Any]

    def sequences(self) -> dict[str, list[Any]]:
        """By name: the actions that are repeated, one after the other."""
        throughout = {f"{name} throughout": [action] for name, action in self.actions.items()}
        return {**throughout, f"in turn: {', '.join(self.actions)}": list(self.actions.values())}

    def action(self, cycle: list[Any], step: int) -> Any:
        """What a sequence plays at a step, from 0."""
        return list(self.actions.values())[-1] if step == 0 else cycle[step % len(cycle)]


def certify(
    env_id: str, kwargs: dict[str, Any], seeds: int, steps: int | None, played: Callable[[str], None]
) -> Certificate:
    """Play the sequences and judge what they do.

    Args:
        env_id: of any environment of Gymnasium; "module:Id-v0" imports the module first.
        kwargs: of `gym.make`.
        seeds: how many, from 0.
        steps: of an episode that are played; None: all.
        played: called before every sequence, with its name.

    Raises:
        ValueError: too few seeds or steps, an action space that is neither Discrete nor a bounded Box, an argument that
            the environment does not take, an episode that does not end, an outcome that is not finite.
        gymnasium.error.Error: there is no such environment, or a library of it is missing.
    """
    if seeds < LEAST_SEEDS:
        raise ValueError(f"seeds must be at least {LEAST_SEEDS}, not {seeds}: fewer cannot give p < {LEVEL}")
    if steps is not None and steps < 2:
        raise ValueError(f"steps must be at least 2, not {steps}: the first action is the same in every sequence")
    game = look_at(env_id, kwargs, steps)
    outcomes = []
    for name, cycle in game.sequences().items():
        played(name)
        outcomes.append((_in_lockstep if game.lockstep else _one_by_one)(game, cycle, seeds))
        if not np.isfinite(outcomes[-1]).all():
            raise ValueError(f"{env_id}: an outcome of {name!r} is not finite: {outcomes[-1].tolist()}")
    outcome = "ln(validation loss)" if game.is_qan else "return"
    return Certificate(env_id, outcome, list(game.actions)[-1], tuple(game.sequences()), np.array(outcomes))


def look_at(env_id: str, kwargs: dict[str, Any], steps: int | None) -> Game:
    """What there is to play; its arguments are those of `certify`.

    Raises:
        ValueError: there is no such environment, or it cannot be made with these arguments.
    """
    try:
        env = gym.make(env_id, **kwargs)
    except (TypeError, ModuleNotFoundError) as error:
        raise ValueError(f"{env_id} cannot be made: {error}") from error
    about, spec = env.unwrapped, env.spec
    env.close()
    actions = extremes(env.action_space)
    is_qan = isinstance(about, QanEnv)
    whole = about.episode_length if is_qan else spec.max_episode_steps
    bounds = [bound for bound in (steps, whole) if bound is not None]
    limit = min(bounds, default=LONGEST)
    if is_qan and limit < whole:
        # So that the validation loss is measured after the last step that is played; training is the same.
        kwargs = {**kwargs, "validate_every": limit * about.config.batches_per_action}
    return Game(env_id, kwargs, limit, not bounds, is_qan, _has_rows(spec), actions)


def _has_rows(spec: EnvSpec) -> bool:
    return (
        spec.entry_point in ENTRY_POINTS.values()
        and spec.vector_entry_point == VECTOR_ENTRY_POINT
        and not spec.additional_wrappers
    )


def extremes(space: spaces.Space[Any]) -> dict[str, Any]:
    """The actions to try, by name: of Discrete all, or ten from first to last; of Box the highest, the lowest, both in
    turn along its axes, and the middle.

    Raises:
        ValueError: another space, one without bounds, or of one action.
    """
    if isinstance(space, spaces.Discrete) and space.n > 1:
        places = np.linspace(0, space.n - 1, min(int(space.n), MOST_ACTIONS)).round().astype(int)
        return {str(action): action for action in (int(space.start) + places).tolist()}
    if isinstance(space, spaces.Box) and space.is_bounded():
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        found = {"high": high, "low": low}
        if low.size > 1:
            even = (np.arange(low.size) % 2 == 0).reshape(low.shape)
            found |= {"high-low": np.where(even, high, low), "low-high": np.where(even, low, high)}
        found["middle"] = (low + high) / 2
        return {name: value.astype(space.dtype) for name, value in found.items()}
    raise ValueError(f"the actions must be Discrete, more than one, or a Box with bounds; they are {space}")


def _one_by_one(game: Game, cycle: list[Any], seeds: int) -> NDArray[np.float64]:
    """The outcomes of a sequence, (seeds,), each of a new environment: nothing is left in it from another episode."""
    outcomes = []
    for seed in range(seeds):
        env = gym.make(game.env_id, **game.kwargs)
        env.reset(seed=seed)
        total, step, over = 0.0, 0, False
        while not over and step < game.limit:
            _, reward, terminated, truncated, info = env.step(game.action(cycle, step))
            total, step, over = total + float(reward), step + 1, terminated or truncated
        env.close()
        if not over and game.endless:
            raise ValueError(f"{game.env_id}: an episode has not ended after {game.limit:,} steps: give --steps")
        outcomes.append(_log(info["validation_loss"]).item() if game.is_qan else total)
    return np.array(outcomes)


def _in_lockstep(game: Game, cycle: list[Any], seeds: int) -> NDArray[np.float64]:
    """The same of a game of qan-gym, all seeds at once."""
    envs = gym.make_vec(game.env_id, num_envs=seeds, **game.kwargs)
    envs.reset(seed=0)  # row i has seed i
    losses, playing = np.zeros(seeds), np.ones(seeds, np.bool_)
    for step in range(game.limit):
        actions = np.stack([np.asarray(game.action(cycle, step))] * seeds)
        _, _, terminated, truncated, infos = envs.step(actions)
        losses = np.where(playing, infos["validation_loss"], losses)
        playing &= ~(terminated | truncated)
        if not playing.any():
            break
    envs.close()
    return _log(losses)


def _log(losses: Any) -> NDArray[np.float64]:
    return safe_log(torch.as_tensor(losses, dtype=torch.float64)).numpy()
