"""A certificate that the actions of an environment matter beyond seed noise.

Extreme sequences of actions are played on the same seeds: each of (up to ten) actions throughout, and all of them in
turn. All begin with the same action, so that in an environment in which only the first action has an effect, as in the
original, the sequences do not differ. The environment is certified if both of these hold:

- The sequences differ by more than chance: p < 0.01 in Friedman's test (1937) with the seeds as blocks. The test uses
  the ranks within a seed: it assumes nothing about the distribution of the outcomes, and a diverged one is ranked last.
- They differ by more than the seeds do: the standard deviation of the sequences' means is above that of the seeds
  within a sequence (pooled). A difference may be certain and yet too small for an agent to find among the seeds.

The outcome is ln(validation loss) in the environments of qan-gym, elsewhere the undiscounted return.

Where every episode draws a task, one seed's loss differs from another's by the tasks, which is no noise, and what is
best in one task is not in another. There each task is played on four seeds or more: Friedman's statistics of the tasks
are added, as are their degrees of freedom, and both spreads are those within a task, pooled over the tasks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray
from scipy.stats import chi2, friedmanchisquare

from qan_agents.budgets import LEAST_SEEDS, LEAST_STEPS
from qan_gym.core.reward import safe_log
from qan_gym.env import QanEnv
from qan_gym.families.env import FamilyEnv
from qan_gym.families.record import TaskRecord
from qan_gym.registration import VECTOR_ENTRY_POINT
from qan_gym.utils.arrays import NUMPY
from qan_gym.utils.counts import counted
from qan_gym.vector_env import QanVectorEnv

SIGNIFICANCE = 0.01  # certified: p is below this,
LEAST_RATIO = 1.0  # and the spread of the sequences over that of the seeds is above this
MOST_ACTIONS = 10  # of a Discrete space that are tried
LEAST_SEEDS_OF_A_TASK = 4  # where every episode draws a task
LONGEST = 100_000  # steps after which an episode without a known length is given up

Show = Callable[[str, float], None]  # the name of a sequence, the share of all that is done


@dataclass(frozen=True, eq=False)
class Certificate:
    """The outcomes of S sequences of actions, and the verdict.

    Attributes:
        env: the id.
        outcome: the name of what was measured.
        first: the name of the action that every sequence begins with.
        sequences: the names of the sequences, S.
        outcomes: (S, seeds).
        task_starts: the places among the seeds at which those of the next task begin; empty: there is one task.
        tasks: where tasks are drawn, the split and the number of each.
    """

    env: str
    outcome: str
    first: str
    sequences: tuple[str, ...]
    outcomes: NDArray[np.float64]
    task_starts: tuple[int, ...] = ()
    tasks: tuple[str, ...] = ()

    @property
    def by_task(self) -> list[NDArray[np.float64]]:
        """The outcomes of each task, (S, its seeds)."""
        return np.split(self.outcomes, self.task_starts, axis=1)

    @property
    def seeds(self) -> str:
        """How many there are, and of which tasks, in words."""
        seeds = counted(self.outcomes.shape[1], "seed")
        return f"{seeds} of {counted(len(self.tasks), 'task')} ({', '.join(self.tasks)})" if self.tasks else seeds

    @property
    def deviations(self) -> NDArray[np.float64]:
        """(S,), the standard deviation of the seeds of each sequence, within a task."""
        deviations: NDArray[np.float64] = np.sqrt(np.mean([own.var(axis=1, ddof=1) for own in self.by_task], axis=0))
        return deviations

    @property
    def identical(self) -> bool:
        """Whether on each seed all sequences have the same outcome, bit for bit."""
        return bool((self.outcomes == self.outcomes[0]).all())

    @property
    def between_sequences(self) -> float:
        """The standard deviation of the sequences' means over the seeds, within a task."""
        return math.sqrt(np.mean([own.mean(axis=1).var(ddof=1) for own in self.by_task]))

    @property
    def between_seeds(self) -> float:
        """The standard deviation of the seeds within a sequence and a task, pooled over both."""
        return math.sqrt((self.deviations**2).mean())

    @property
    def ratio(self) -> float:
        """The spread of the sequences over that of the seeds; inf where the seeds change nothing."""
        if self.identical:
            return 0.0
        return self.between_sequences / self.between_seeds if self.between_seeds > 0 else math.inf

    @property
    def p_value(self) -> float:
        """Of Friedman's test, whose null hypothesis is that the sequences are interchangeable on every seed."""
        if self.identical:
            return 1.0
        statistics = [friedmanchisquare(*own).statistic for own in self.by_task]  # nan: all the same on every seed
        return float(chi2.sf(np.nansum(statistics), len(statistics) * (len(self.outcomes) - 1)))

    @property
    def certified(self) -> bool:
        """Whether both conditions hold; see the module."""
        return self.p_value < SIGNIFICANCE and self.ratio > LEAST_RATIO

    @property
    def verdict(self) -> str:
        """The result in a sentence."""
        if self.certified:
            return f"certified: the actions of {self.env} matter beyond seed noise"
        if self.identical:
            return (
                f"not certified: the actions of {self.env} change nothing: whatever is played after the first, the "
                f"{self.outcome} is the same, bit for bit, on every seed"
            )
        reasons = []
        if self.p_value >= SIGNIFICANCE:
            count = self.outcomes.shape[1]
            few = f"p = {self.p_value:.2g} is not below {SIGNIFICANCE:g} on {count} seeds; more seeds may decide"
            reasons.append(f"whether the sequences differ by more than chance is open ({few})")
        if self.ratio <= LEAST_RATIO:
            spread = f"{self.ratio:.3g} times that of the seeds (above {LEAST_RATIO:g} wanted)"
            reasons.append(f"the spread of the sequences is only {spread}")
        return f"not certified: {self.env}: {', and '.join(reasons)}"


@dataclass(frozen=True)
class CheckedEnv:
    """The environment that is checked, and the actions that are tried.

    Attributes:
        env_id, kwargs: of `gym.make`.
        limit: steps of an episode that are played at most.
        endless: nobody has said that the limit may come before the end.
        is_qan: whether it is an environment of qan-gym.
        lockstep: whether qan-gym's vector environment plays the same episodes, one per row.
        actions: the extreme actions, by name; the last one begins every sequence.
    """

    env_id: str
    kwargs: dict[str, Any]
    limit: int
    endless: bool
    is_qan: bool
    lockstep: bool
    actions: dict[str, Any]

    def sequences(self) -> dict[str, list[Any]]:
        """The sequences by name: the actions that are repeated, one after the other."""
        throughout = {f"{name} throughout": [action] for name, action in self.actions.items()}
        return {**throughout, f"in turn: {', '.join(self.actions)}": list(self.actions.values())}

    def games(self, most: int) -> list[dict[str, Any]]:
        """The keyword arguments of every game that is played: of an environment that draws tasks, `most` of them."""
        env = gym.make(self.env_id, **self.kwargs)
        inner = env.unwrapped
        games, batches = [self.kwargs], []
        if isinstance(inner, FamilyEnv):
            tasks = dict.fromkeys(_task_of(env, seed) for seed in range(most))
            drawing = {one.name for one in fields(inner.source)} - {"batches_per_action"}
            kept = {name: value for name, value in self.kwargs.items() if name not in drawing}
            games, batches = [{**kept, "task": one} for one in tasks], [*map(inner.source.action_batches, tasks)]
        elif isinstance(inner, QanEnv):
            batches = [inner.config.batches_per_action]
        env.close()
        if not isinstance(inner, QanEnv) or self.limit >= inner.episode_length:
            return games
        # So that the validation loss is measured after the last step that is played; training is the same.
        return [{**game, "validate_every": self.limit * count} for game, count in zip(games, batches, strict=True)]

    def action(self, cycle: list[Any], step: int) -> Any:
        """The action of a sequence at a step, from 0."""
        return list(self.actions.values())[-1] if step == 0 else cycle[step % len(cycle)]


def certify(env_id: str, kwargs: dict[str, Any], seeds: int, steps: int | None, show: Show) -> Certificate:
    """Play the sequences and judge what they do.

    Args:
        env_id: of any environment of Gymnasium; "module:Id-v0" imports the module first.
        kwargs: of `gym.make`.
        seeds: how many, from 0.
        steps: of an episode that are played; None: all.
        show: called after steps with the name of the sequence and the share of all that is done.

    Raises:
        ValueError: too few seeds, too few or too many steps, an action space without extremes (see `extremes`), an
            argument that the environment does not take, an episode that does not end, an outcome that is not finite.
        gymnasium.error.Error: there is no such environment, or a library of it is missing.
    """
    if seeds < LEAST_SEEDS:
        raise ValueError(f"seeds must be at least {LEAST_SEEDS}, not {seeds}: fewer cannot give p < {SIGNIFICANCE}")
    if steps is not None and steps < LEAST_STEPS:
        raise ValueError(
            f"steps must be at least {LEAST_STEPS}, not {steps}: the first action is the same in every sequence"
        )
    checked = examine(env_id, kwargs, steps)
    if steps is not None and steps > checked.limit:
        raise ValueError(
            f"steps must be at most {checked.limit}, those of an episode of {env_id}, not {steps}: give no --steps to "
            "play all of them"
        )
    play = _in_lockstep if checked.lockstep else _one_by_one
    games = checked.games(seeds // LEAST_SEEDS_OF_A_TASK)
    parts = [range(part[0], part[-1] + 1) for part in np.array_split(np.arange(seeds), len(games))]
    outcomes, total = [], len(games) * len(checked.sequences())
    for row, (name, cycle) in enumerate(checked.sequences().items()):
        found = []
        for place, (game, part) in enumerate(zip(games, parts, strict=True), start=row * len(games)):
            show(name, place / total)
            found.append(play(checked, game, part, cycle, _within(show, name, place, total)))
        outcomes.append(np.concatenate(found))
        if not np.isfinite(outcomes[-1]).all():
            raise ValueError(f"{env_id}: an outcome of {name!r} is not finite: {outcomes[-1].tolist()}")
    show(name, 1.0)
    outcome = "ln(validation loss)" if checked.is_qan else "return"
    starts = tuple(part[0] for part in parts[1:])
    first, sequences = list(checked.actions)[-1], tuple(checked.sequences())
    tasks = tuple(f"{task.split} {task.number}" for game in games if isinstance(task := game.get("task"), TaskRecord))
    return Certificate(env_id, outcome, first, sequences, np.array(outcomes), starts, tasks)


def _within(show: Show, name: str, place: int, total: int) -> Callable[[float], None]:
    """What is told the share of the part at a place that is done."""
    return lambda share: show(name, (place + share) / total)


def examine(env_id: str, kwargs: dict[str, Any], steps: int | None) -> CheckedEnv:
    """Make the environment once, to find out what can be played; the arguments are those of `certify`.

    Raises:
        ValueError: it cannot be made with these arguments, or its action space has no extremes.
        gymnasium.error.Error: there is no such environment, or a library of it is missing.
    """
    try:
        env = gym.make(env_id, **kwargs)
    except (TypeError, ModuleNotFoundError) as error:
        raise ValueError(f"{env_id} cannot be made: {error}") from error
    inner, spec = env.unwrapped, env.spec
    env.close()
    assert spec is not None  # gym.make sets it
    bounds = [bound for bound in (steps, spec.max_episode_steps) if bound is not None]
    if isinstance(inner, QanEnv):
        bounds.append(inner.episode_length)
    return CheckedEnv(
        env_id=env_id,
        kwargs=kwargs,
        limit=min(bounds, default=LONGEST),
        endless=not bounds,
        is_qan=isinstance(inner, QanEnv),
        lockstep=_has_lockstep(inner, spec),
        actions=_named(extremes(env.action_space), inner),
    )


def _named(actions: dict[str, Any], env: gym.Env[Any, Any]) -> dict[str, Any]:
    """Actions by the names that a game of qan-gym has for them."""
    if not isinstance(env, QanEnv) or not isinstance(env.action_space, spaces.Discrete):
        return actions
    parts = env.training.parts
    names = parts.game.action_names(parts.config, parts.n_classes)
    return {names[action]: action for action in actions.values()}


def _task_of(env: gym.Env[Any, Any], seed: int) -> TaskRecord:
    """What an environment that draws tasks plays with a seed."""
    env.reset(seed=seed)
    task: TaskRecord = env.get_wrapper_attr("task")
    return task


def _has_lockstep(env: gym.Env[Any, Any], spec: EnvSpec) -> bool:
    """Whether an id is played by qan-gym's own environment and vector environment, and nothing is wrapped around."""
    own_env = isinstance(env, QanEnv) and type(env).__module__.startswith("qan_gym.")
    own_vector_env = spec.vector_entry_point in (VECTOR_ENTRY_POINT, QanVectorEnv)
    whole = isinstance(env, QanEnv) and spec.max_episode_steps == env.episode_length
    return own_env and own_vector_env and not spec.additional_wrappers and whole


def extremes(space: spaces.Space[Any]) -> dict[str, Any]:
    """The actions to try, by name.

    Of a Discrete space all, or ten from the first to the last; of a MultiDiscrete space or a Box the highest, the
    lowest, and both in turn along its axes; of a Box the middle, too.

    Raises:
        ValueError: another space, one without bounds, or of a single action.
    """
    if isinstance(space, spaces.Discrete) and space.n > 1:
        places = np.linspace(0, space.n - 1, min(int(space.n), MOST_ACTIONS)).round().astype(int)
        return {str(action): action for action in (int(space.start) + places).tolist()}
    if isinstance(space, spaces.MultiDiscrete) and (space.nvec > 1).any():
        found = _corners(space.start, space.start + space.nvec - 1)
    elif isinstance(space, spaces.Box) and space.is_bounded():
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        found = {**_corners(low, high), "middle": (low + high) / 2}
    else:
        raise ValueError(
            f"the actions must be Discrete or MultiDiscrete, more than one, or a Box with bounds; they are {space}"
        )
    return {name: value.astype(space.dtype) for name, value in found.items()}


def _corners(low: NDArray[Any], high: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The highest and the lowest action, and, of several numbers, the two that alternate between these."""
    found = {"high": high, "low": low}
    if low.size > 1:
        even = (np.arange(low.size) % 2 == 0).reshape(low.shape)
        found |= {"high-low": np.where(even, high, low), "low-high": np.where(even, low, high)}
    return found


def _one_by_one(
    checked: CheckedEnv, kwargs: dict[str, Any], seeds: range, cycle: list[Any], show: Callable[[float], None]
) -> NDArray[np.float64]:
    """The outcomes of a sequence, (seeds,), each of a new environment, so that nothing is left from another episode."""
    outcomes = []
    for number, seed in enumerate(seeds):
        env = gym.make(checked.env_id, **kwargs)
        env.reset(seed=seed)
        total, step, over = 0.0, 0, False
        while not over and step < checked.limit:
            _, reward, terminated, truncated, info = env.step(checked.action(cycle, step))
            total, step, over = total + float(reward), step + 1, terminated or truncated
            show((number + step / checked.limit) / len(seeds))
        env.close()
        if not over and checked.endless:
            raise ValueError(f"{checked.env_id}: an episode has not ended after {checked.limit:,} steps: give --steps")
        outcomes.append(_log(info["validation_loss"]).item() if checked.is_qan else total)
    return np.array(outcomes)


def _in_lockstep(
    checked: CheckedEnv, kwargs: dict[str, Any], seeds: range, cycle: list[Any], show: Callable[[float], None]
) -> NDArray[np.float64]:
    """The same, of an environment of qan-gym, all seeds at once."""
    envs = gym.make_vec(checked.env_id, num_envs=len(seeds), **kwargs)
    envs.reset(seed=seeds[0])  # row i has the i-th seed
    losses, playing = np.zeros(len(seeds)), np.ones(len(seeds), np.bool_)
    for step in range(checked.limit):
        actions = np.stack([np.asarray(checked.action(cycle, step))] * len(seeds))
        _, _, terminated, truncated, infos = envs.step(actions)
        losses = np.where(playing, infos["validation_loss"], losses)
        playing &= ~(terminated | truncated)
        show((step + 1) / checked.limit)
        if not playing.any():
            break
    envs.close()
    return _log(losses)


def _log(losses: Any) -> NDArray[np.float64]:
    logs: NDArray[np.float64] = safe_log(NUMPY, np.asarray(losses, np.float64))
    return logs
