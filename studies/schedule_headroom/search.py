"""How much room is there for a controller? What a direct search finds, on the very seeds that it is judged on.

    python benchmarks/room.py half|end [--no-pull] [--trials 100]

Optuna searches the learning rates of `QanLR-MNIST5k-v0`, linear in the logarithm between seven knots:

- `half`: of the first half of the training, for the lowest validation loss up to half time, over the one that the
  tuned constant has in the end. Below 1 the constant's result is reached in half of the training.
- `end`: of the whole training, for the lowest *test* loss in the end, over that of the tuned one-cycle. The best is
  then played on twelve other seeds beside one-cycle, which tells how much of it was luck.

No controller may look at what it is judged on: this is what one could do at most, and it flatters. Printed is each best
so far, as a ratio (geometric mean over six seeds), and on how many seeds it is below 1.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from scipy import stats
from waves import bests

import qan_gym  # noqa: F401 (registers the ids)
from qan_agents.bench.controllers import (
    ABSOLUTE,
    FAMILIES,
    LARGEST_RATE,
    LEAST_RATE,
    Problem,
    Scheduled,
    make_env,
    play,
)
from qan_agents.seeds import UNSEEN_BELOW

CONSTANT = {True: 0.041, False: 0.092}  # with the pull and without: chosen by Optuna on 20 trainings in the bench
ONE_CYCLE = {  # likewise, with the pull on 100 trainings, which gave the best of the bench, without it on 20
    True: {"learning_rate": 0.107, "start": 0.449},
    False: {"learning_rate": 0.169, "start": 0.304},
}
PLACES = np.array([0, 0.1, 0.2, 0.4, 0.6, 0.8, 1])  # of the knots, in what is searched of the training
LOW, HIGH = np.log(1e-4), np.log(1.0)  # of the learning rates
SEEDS = [UNSEEN_BELOW + 20_000 + number for number in range(6)]  # of tuning; none that a controller is judged on
OTHERS = [UNSEEN_BELOW + 30_000 + number for number in range(12)]
AT_ONCE = 4  # schedules in lock-step, each on all seeds
DIVERGED = 10.0  # the loss that a diverged training counts as

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Question:
    """What is searched for.

    Attributes:
        loss: what is lowered, by its name in `info`.
        share: of the training, searched and played.
        rival: of these loss in the end is the measure: a family of schedules and its settings.
    """

    loss: str
    share: float
    rival: tuple[str, dict[str, float]]


def question(name: str, pull: bool) -> Question:
    """The question of that name."""
    if name == "half":
        return Question("validation_loss", 0.5, ("constant", {"learning_rate": CONSTANT[pull]}))
    return Question("test_loss", 1.0, ("one-cycle", ONE_CYCLE[pull]))


def triangle(peak: float, warm_up: float) -> Floats:
    """ln learning rates that rise for a share of what is searched, then fall to next to nothing: to begin with."""
    rates = peak * np.minimum((PLACES + 0.02) / warm_up, (1 - PLACES) / (1 - warm_up))
    return np.log(np.clip(rates, 1e-4, peak))  # (knots,)


def losses(env: VectorEnv, knots: Floats, seeds: Sequence[int], asked: Question) -> Floats:
    """Of ln learning rates (schedules, knots) the losses (schedules, seeds): the lowest, or the one in the end."""
    steps, rows = env.unwrapped.episode_length, np.repeat(knots, len(seeds), axis=0)
    low, high = np.log(LEAST_RATE), np.log(LARGEST_RATE)
    env.reset(seed=list(seeds) * len(knots))
    best, diverged = np.full(len(rows), np.inf), np.zeros(len(rows), np.bool_)
    for step in range(round(asked.share * steps)):
        logs = np.array([np.interp(step / steps / asked.share, PLACES, row) for row in rows])
        actions = (2 * (logs - low) / (high - low) - 1).astype(np.float32)[:, None]
        _, _, terminated, _, infos = env.step(actions)
        diverged |= terminated
        if asked.loss in infos:  # the test loss is there at the end of a row alone
            best = np.where(infos[f"_{asked.loss}"], np.minimum(best, infos[asked.loss]), best)
        if terminated.any():  # what the row plays from here on is not heard
            rows[terminated] = LOW
            env.reset(options={"reset_mask": terminated})
    return np.where(diverged, DIVERGED, best).reshape(len(knots), len(seeds))


def search(env: VectorEnv, goal: Floats, asked: Question, trials: int) -> Floats:
    """The best ln learning rates (knots,) of a search; prints each best so far."""
    names = [f"at {place}" for place in PLACES]
    triangles = [triangle(peak, warm_up) for peak in (0.1, 0.2, 0.3) for warm_up in (0.05, 0.3)]
    first = [dict(zip(names, logs.tolist(), strict=True)) for logs in triangles]

    def suggest(trial: optuna.Trial) -> Floats:
        return np.array([trial.suggest_float(name, LOW, HIGH) for name in names])

    def measure(wave: list[Floats]) -> Floats:
        return losses(env, np.array(wave), SEEDS, asked) / goal  # (schedules, seeds)

    found = np.empty(0)
    for number, found, ratios, mean in bests(suggest, measure, trials, AT_ONCE, first):
        rates = ", ".join(f"{rate:.2g}" for rate in np.exp(found))
        print(f"schedule {number}, learning rates {rates}: {mean:.3f} times that, ", end="")
        print(f"below it on {(ratios <= 1).sum()} of {len(SEEDS)} seeds", flush=True)
    return found


def main() -> None:
    """Search and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=("half", "end"))
    parser.add_argument("--no-pull", action="store_true", help="the game without meta-momentum")
    parser.add_argument("--trials", type=int, default=100, help="schedules to try")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    asked = question(arguments.question, not arguments.no_pull)
    problem = Problem("QanLR-MNIST5k-v0", {"meta_momentum": None} if arguments.no_pull else {}, 0, 0)
    family, chosen = asked.rival

    def of_rival(seeds: Sequence[int]) -> Floats:
        env = make_env(problem, len(seeds), ABSOLUTE)
        return play(env, Scheduled(FAMILIES[family], [chosen]), seeds).final[asked.loss]  # (seeds,)

    goal = of_rival(SEEDS)
    settings = ", ".join(f"{name} {value}" for name, value in chosen.items())
    print(f"{family}, {settings}: {asked.loss.replace('_', ' ')} {goal.mean():.4f} in the end", flush=True)
    every = {**ABSOLUTE, "validate_every": 100}  # so that half time is a look
    found = search(make_env(problem, len(SEEDS) * AT_ONCE, every), goal, asked, arguments.trials)
    if arguments.question == "end":
        ours, theirs = losses(make_env(problem, len(OTHERS), every), found[None], OTHERS, asked)[0], of_rival(OTHERS)
        low, high = stats.ttest_1samp(ours - theirs, 0.0).confidence_interval(0.95)
        print(f"on {len(OTHERS)} other seeds {ours.mean():.4f} and {theirs.mean():.4f}: ", end="")
        print(f"{np.mean(ours - theirs):+.4f} (95 % interval {low:+.4f} to {high:+.4f})")


if __name__ == "__main__":
    main()
