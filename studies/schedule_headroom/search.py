"""The best learning rates that a direct search finds, on the very seeds that it is evaluated on.

    python -m studies.schedule_headroom.search half|end [--no-pull] [--trials 100]

Optuna searches the learning rates of `QanLR-MNIST5k-v0`, linear in the logarithm between seven knots:

- `half`: of the first half of the training, for the lowest validation loss up to half time, over the one that the
  tuned constant has at the end. Below 1 the result of the constant is reached in half of the training.
- `end`: of the whole training, for the lowest *test* loss at the end, over that of the tuned one-cycle. The best is
  then played on twelve other seeds beside one-cycle, which shows how much of it was chance.

No controller may see what it is evaluated on: this is an optimistic bound. Each best so far is printed as a ratio
(geometric mean over six seeds), with the number of seeds on which it is at most 1.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
import torch
from numpy.typing import NDArray
from scipy import stats

import qan_gym  # noqa: F401 (registers the ids)
from qan_agents.bench.rollout import play_episodes
from qan_agents.bench.tuned_schedules import ABSOLUTE_ACTIONS, ScheduleController, absolute_actions
from qan_agents.bench.tuning_task import Settings, TuningTask, make_env
from qan_agents.seeds import UNSEEN_BELOW
from qan_gym.vector_env import QanVectorEnv
from studies.batched_search import improvements

CONSTANT = {True: 0.041, False: 0.092}  # with the pull and without: chosen by Optuna on 20 trainings in the bench
ONE_CYCLE = {  # likewise; with the pull on 100 trainings, which gave the best of the bench, without it on 20
    True: {"learning_rate": 0.107, "start": 0.449},
    False: {"learning_rate": 0.169, "start": 0.304},
}
PLACES = np.array([0, 0.1, 0.2, 0.4, 0.6, 0.8, 1])  # of the knots, in the part of the training that is searched
LOW, HIGH = np.log(1e-4), np.log(1.0)  # of the learning rates
SEEDS = [UNSEEN_BELOW + 20_000 + number for number in range(6)]  # for tuning; no controller is evaluated on them
OTHER_SEEDS = [UNSEEN_BELOW + 30_000 + number for number in range(12)]
BATCH_SIZE = 4  # schedules in lock-step, each on all seeds
DIVERGED = 10.0  # the loss that stands for a diverged training

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Question:
    """What is searched for.

    Attributes:
        loss: what is minimised, by its name in `info`.
        share: of the training that is searched and played.
        rival: a schedule and its settings; its loss at the end is the unit.
    """

    loss: str
    share: float
    rival: tuple[str, Settings]


def make_question(name: str, pull: bool) -> Question:
    """The question of a name, with the pull or without."""
    if name == "half":
        return Question("validation_loss", 0.5, ("constant", {"learning_rate": CONSTANT[pull]}))
    return Question("test_loss", 1.0, ("one-cycle", ONE_CYCLE[pull]))


def triangle(peak: float, warm_up: float) -> Floats:
    """ln learning rates (knots,) to try first: they rise for a share of the searched part, then fall to almost 0."""
    rates = peak * np.minimum((PLACES + 0.02) / warm_up, (1 - PLACES) / (1 - warm_up))
    return np.log(np.clip(rates, 1e-4, peak))


def losses(env: QanVectorEnv, knots: Floats, seeds: Sequence[int], question: Question) -> Floats:
    """The losses (schedules, seeds) of ln learning rates (schedules, knots): the lowest one, or the one at the end."""
    steps, rows = env.episode_length, np.repeat(knots, len(seeds), axis=0)
    env.reset(seed=[*seeds] * len(knots))
    best, diverged = np.full(len(rows), np.inf), np.zeros(len(rows), np.bool_)
    for step in range(round(question.share * steps)):
        logs = np.array([np.interp(step / steps / question.share, PLACES, row) for row in rows])
        _, _, terminated, _, infos = env.step(absolute_actions(np.exp(logs), env.config))
        diverged |= np.asarray(terminated)
        if question.loss in infos:  # the test loss is there at the end of an episode only
            best = np.where(infos[f"_{question.loss}"], np.minimum(best, infos[question.loss]), best)
        if np.any(terminated):  # mode DISABLED wants them reset; what they do from here on is not recorded
            rows[terminated] = LOW
            env.reset(options={"reset_mask": terminated})
    return np.where(diverged, DIVERGED, best).reshape(len(knots), len(seeds))


def search(env: QanVectorEnv, unit: Floats, question: Question, trials: int) -> Floats:
    """The best ln learning rates (knots,) of a search; prints each best so far."""
    names = [f"at {place}" for place in PLACES]
    triangles = [triangle(peak, warm_up) for peak in (0.1, 0.2, 0.3) for warm_up in (0.05, 0.3)]
    first = [dict(zip(names, logs.tolist(), strict=True)) for logs in triangles]

    def suggest(trial: optuna.Trial) -> Floats:
        return np.array([trial.suggest_float(name, LOW, HIGH) for name in names])

    def measure(schedules: list[Floats]) -> Floats:
        return losses(env, np.array(schedules), SEEDS, question) / unit  # (schedules, seeds)

    found = np.empty(0)
    for best in improvements(suggest, measure, trials, BATCH_SIZE, first):
        found = best.candidate
        rates = ", ".join(f"{rate:.2g}" for rate in np.exp(found))
        print(f"schedule {best.number}, learning rates {rates}: {best.mean:.3f} times that, ", end="")
        print(f"at most that on {(best.measured <= 1).sum()} of {len(SEEDS)} seeds", flush=True)
    return found


def main() -> None:
    """Search and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=("half", "end"))
    parser.add_argument("--no-pull", action="store_true", help="the game without meta-momentum")
    parser.add_argument("--trials", type=int, default=100, help=f"schedules to try, in batches of {BATCH_SIZE}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    question = make_question(arguments.question, not arguments.no_pull)
    env_kwargs: Settings = {"meta_momentum": None} if arguments.no_pull else {}
    task = TuningTask("QanLR-MNIST5k-v0", env_kwargs, runs=0, seed=0)
    schedule, chosen = question.rival

    def of_rival(seeds: Sequence[int]) -> Floats:
        env = make_env(task, len(seeds), ABSOLUTE_ACTIONS)
        final: Floats = play_episodes(env, ScheduleController(schedule, [chosen]), seeds).final[question.loss]
        return final  # (seeds,)

    unit = of_rival(SEEDS)
    settings = ", ".join(f"{name} {value}" for name, value in chosen.items())
    print(f"{schedule}, {settings}: {question.loss.replace('_', ' ')} {unit.mean():.4f} at the end", flush=True)
    often = {**ABSOLUTE_ACTIONS, "validate_every": 100}  # so that it is measured at half time
    found = search(make_env(task, len(SEEDS) * BATCH_SIZE, often), unit, question, arguments.trials)
    if arguments.question == "end":
        ours = losses(make_env(task, len(OTHER_SEEDS), often), found[None], OTHER_SEEDS, question)[0]
        theirs = of_rival(OTHER_SEEDS)
        low, high = stats.ttest_1samp(ours - theirs, 0.0).confidence_interval(0.95)
        print(f"on {len(OTHER_SEEDS)} other seeds {ours.mean():.4f} and {theirs.mean():.4f}: ", end="")
        print(f"{np.mean(ours - theirs):+.4f} (95 % interval {low:+.4f} to {high:+.4f})")


if __name__ == "__main__":
    main()
