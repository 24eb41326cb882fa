"""The trained agent beside fixed policies, on seeds that it was not trained on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import FrameStackObservation

from qan_agents.experiments.learner import Greedy
from qan_agents.experiments.run_folder import Run, read_rows, write_rows
from qan_agents.experiments.train import load_agent
from qan_agents.policies.fixed import Policy, make_policy
from qan_agents.policies.rollout import Episode, Recorder, play

BESIDE = {"learning-rate": ("constant", "cosine"), "minibatch": ("uniform", "random")}  # by game; the first is the baseline
SCORES = ("test_loss", "test_accuracy", "validation_loss", "validation_accuracy")
COLUMNS = ("policy", "seed", *SCORES, "return", "steps", "diverged", "steps_to_baseline")


@dataclass(frozen=True)
class Standing:
    """One policy over all seeds.

    Attributes:
        policy: its name.
        test_loss, test_accuracy: one per seed.
        steps_to_baseline: actions until the smoothed loss was down to where the baseline's ended; None: never.
    """

    policy: str
    test_loss: list[float]
    test_accuracy: list[float]
    steps_to_baseline: list[int | None]


def evaluate(run: Run, played: Callable[[str, int], None]) -> list[Standing]:
    """Play the agent of a run greedily and the fixed policies, on the run's seeds for it; write both tables.

    Args:
        run: with a saved agent.
        played: called before every episode, with the policy's name and the seed.

    Raises:
        ValueError: the run has no agent yet, or a file of it is damaged.
    """
    config = run.config()
    learner = load_agent(run)
    env = FrameStackObservation(Recorder(gym.make(config.env, **config.env_kwargs)), learner.config.history)
    policies: dict[str, Policy] = {config.agent: Greedy(learner)}
    beside = config.beside or BESIDE[env.unwrapped.config.game]
    policies |= {name: make_policy(name) for name in beside}
    episodes: dict[tuple[str, int], Episode] = {}
    for name, policy in policies.items():
        for seed in config.judged_on:
            played(name, seed)
            episodes[name, seed] = play(env, policy, seed)
    env.close()
    learner.close()
    _write(run, episodes, beside[0])
    return standings(run)


def _write(run: Run, episodes: dict[tuple[str, int], Episode], baseline: str) -> None:
    steps, rows = [], []
    for (name, seed), episode in episodes.items():
        steps += [{"policy": name, "seed": seed, **step} for step in episode.steps]
        target = episodes[baseline, seed].steps[-1]["smoothed_loss"]
        reached = [step["step"] + 1 for step in episode.steps if step["smoothed_loss"] <= target]
        rows.append(
            {
                "policy": name,
                "seed": seed,
                **{score: episode.final[score] for score in SCORES},
                "return": episode.total_reward,
                "steps": len(episode.steps),
                "diverged": int(episode.final["diverged"]),
                "steps_to_baseline": reached[0] if reached else "",
            }
        )
    write_rows(run.folder / "evaluation.csv.gz", steps, list(steps[0]))
    write_rows(run.folder / "evaluation.csv", rows, COLUMNS)


def standings(run: Run) -> list[Standing]:
    """The table of the last evaluation.

    Raises:
        ValueError: the run has not been evaluated.
    """
    path: Path = run.folder / "evaluation.csv"
    rows = read_rows(path)
    table = []
    for name in dict.fromkeys(row["policy"] for row in rows):
        mine = [row for row in rows if row["policy"] == name]
        reached = [int(row["steps_to_baseline"]) if row["steps_to_baseline"] else None for row in mine]
        loss, accuracy = ([float(row[score]) for row in mine] for score in ("test_loss", "test_accuracy"))
        table.append(Standing(name, loss, accuracy, reached))
    return table


def as_rows(table: Sequence[Standing]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Standings as they are shown: the head, and a row each; the second standing is the baseline's."""
    head = ("policy", "test loss", "test accuracy (%)", f"actions to {table[1].policy}'s loss")
    rows = []
    for one in table:
        reached = ", ".join("never" if steps is None else str(steps) for steps in one.steps_to_baseline)
        accuracy = mean_and_range([100 * value for value in one.test_accuracy], digits=1)
        rows.append((one.policy, mean_and_range(one.test_loss, digits=3), accuracy, reached))
    return head, rows


def mean_and_range(values: Sequence[float], digits: int) -> str:
    """`mean (lowest-highest)`, because three seeds make no interval."""
    mean, low, high = (f"{value:.{digits}f}" for value in (np.mean(values), min(values), max(values)))
    return f"{mean} ({low}-{high})"
