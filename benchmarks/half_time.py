"""Can any schedule reach the tuned constant's final validation loss in half of the training?

    python benchmarks/half_time.py [--no-pull] [--trials 100]

Optuna searches the learning rates of the first half of `QanLR-MNIST5k-v0`, linear in the logarithm between seven knots,
for the lowest validation loss up to half time: on the very seeds that it is judged on, which are shown to no controller
and flatter what is found. Printed is each best so far: its lowest validation loss over what the constant (as tuned in
the bench) has in the end, geometric mean over the seeds, and on how many seeds that was reached.
"""

import argparse

import numpy as np
import optuna
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

import qan_gym  # noqa: F401 (registers the ids)
from qan_agents.controllers import ABSOLUTE, FAMILIES, LARGEST_RATE, LEAST_RATE, Problem, Scheduled, make_env, play
from qan_agents.seeds import UNSEEN_BELOW

CONSTANT = {True: 0.041, False: 0.092}  # with the pull and without: chosen by Optuna on 20 trainings in the bench
KNOTS = np.array([0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5])  # shares of the training
LOW, HIGH = np.log(1e-4), np.log(1.0)  # of the learning rates
SEEDS = [UNSEEN_BELOW + 20_000 + number for number in range(6)]  # of tuning; none that a controller is judged on
AT_ONCE = 4  # schedules in lock-step, each on all seeds
DIVERGED = 10.0  # the validation loss that a diverged training counts as


def triangle(peak: float, warm_up: float) -> dict[str, float]:
    """Knots of a schedule that rises during a share of the half and then falls to next to nothing: to begin with."""
    rates = peak * np.minimum((KNOTS + 0.01) / (0.5 * warm_up), (0.5 - KNOTS) / (0.5 * (1 - warm_up)))
    logs = np.log(np.clip(rates, 1e-4, peak))
    return {f"at {share}": float(log) for share, log in zip(KNOTS, logs, strict=True)}


def lowest(env: VectorEnv, knots: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lowest validation losses up to half time, (AT_ONCE, seeds), of ln learning rates (AT_ONCE, knots)."""
    steps, rows = env.unwrapped.decisions, np.repeat(knots, len(SEEDS), axis=0)
    low, high = np.log(LEAST_RATE), np.log(LARGEST_RATE)
    env.reset(seed=SEEDS * AT_ONCE)
    best = np.full(len(rows), np.inf)
    for step in range(steps // 2):
        logs = np.array([np.interp(step / steps, KNOTS, row) for row in rows])
        actions = (2 * (logs - low) / (high - low) - 1).astype(np.float32)[:, None]
        _, _, terminated, _, infos = env.step(actions)
        best = np.where(terminated, DIVERGED, np.minimum(best, infos["validation_loss"]))
        if terminated.any():  # diverged: what the row plays from here on learns next to nothing
            rows[terminated] = LOW
            env.reset(options={"reset_mask": terminated})
    return best.reshape(AT_ONCE, len(SEEDS))


def main() -> None:
    """Search and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-pull", action="store_true", help="the game without meta-momentum")
    parser.add_argument("--trials", type=int, default=100, help="schedules to try")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pull = not arguments.no_pull
    problem = Problem("QanLR-MNIST5k-v0", {} if pull else {"meta_momentum": None}, 0, 0)
    constant = Scheduled(FAMILIES["constant"], [{"learning_rate": CONSTANT[pull]}])
    goal = play(make_env(problem, len(SEEDS), ABSOLUTE), constant, SEEDS).final["validation_loss"]  # (seeds,)
    print(f"constant {CONSTANT[pull]}: validation loss {goal.mean():.4f} in the end", flush=True)

    env = make_env(problem, len(SEEDS) * AT_ONCE, {**ABSOLUTE, "validate_every": 100})  # half time is a look
    sampler = optuna.samplers.TPESampler(seed=0, multivariate=True, constant_liar=True, n_startup_trials=24)
    study = optuna.create_study(sampler=sampler)
    for peak in (0.1, 0.2, 0.3):
        for warm_up in (0.05, 0.3):
            study.enqueue_trial(triangle(peak, warm_up))
    best = np.inf
    while len(study.trials) < arguments.trials:
        trials = [study.ask() for _ in range(AT_ONCE)]
        knots = np.array([[trial.suggest_float(f"at {share}", LOW, HIGH) for share in KNOTS] for trial in trials])
        for trial, logs, losses in zip(trials, knots, lowest(env, knots), strict=True):
            value = float(np.log(losses / goal).mean())
            study.tell(trial, value)
            if value < best:
                best = value
                rates, reached = ", ".join(f"{rate:.2g}" for rate in np.exp(logs)), (losses <= goal).sum()
                print(f"schedule {trial.number + 1}, learning rates {rates}: {np.exp(value):.2f} times that, ", end="")
                print(f"reached on {reached} of {len(SEEDS)} seeds", flush=True)
    print(f"{len(study.trials)} schedules tried")


if __name__ == "__main__":
    main()
