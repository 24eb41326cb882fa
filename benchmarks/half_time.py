"""Can any schedule reach the tuned constant's final validation loss in half of the training?

    python benchmarks/half_time.py

On `QanLR-MNIST5k-v0`, with the pull, on tuning seeds: schedules that rise to a peak and then fall linearly to 0 at half
of the budget, so that they are as low there as such a schedule gets. Printed is their lowest validation loss up to
half time over what the constant (its median of the bench, 0.041) has in the end, geometric mean over the seeds, and on
how many seeds that was reached.
"""

import numpy as np
import torch
from torch.optim import lr_scheduler

import qan_gym  # noqa: F401 (registers the ids)
from qan_agents.controllers import (
    ABSOLUTE,
    FAMILIES,
    Family,
    Problem,
    Scheduled,
    Settings,
    make_env,
    play,
)
from qan_agents.seeds import UNSEEN_BELOW

CONSTANT = 0.041
PEAKS = (0.05, 0.1, 0.2, 0.4)
WARM_UPS = (0.05, 0.3)  # shares of the half
SEEDS = range(UNSEEN_BELOW + 20_000, UNSEEN_BELOW + 20_006)  # of tuning; none that a controller is judged on


def triangle(optimizer: torch.optim.Optimizer, steps: int, chosen: Settings) -> lr_scheduler.LRScheduler:
    """Up to the peak, and down to 0 at half of the steps."""
    half = steps // 2
    top = chosen["warm_up"] * half
    return lr_scheduler.LambdaLR(
        optimizer, lambda step: max(0.0, min((step + 1) / top, (half - step) / (half - top), 1.0))
    )


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    problem = Problem("QanLR-MNIST5k-v0", {}, 0, 0)
    env = make_env(problem, len(SEEDS), {**ABSOLUTE, "validate_every": 100})  # half time is a look
    constant = play(env, Scheduled(FAMILIES["constant"], [{"learning_rate": CONSTANT}]), SEEDS)
    goal = constant.final["validation_loss"]  # (seeds,)
    print(f"constant {CONSTANT}: validation loss {goal.mean():.4f} in the end", flush=True)
    for peak in PEAKS:
        for warm_up in WARM_UPS:
            chosen = {"learning_rate": peak, "warm_up": warm_up}
            course = play(env, Scheduled(Family(triangle), [chosen]), SEEDS)
            looks = len(course.validation) - 1
            early = course.validation[: looks // 2 + 1]  # (looks, seeds), up to half time
            ratio = np.exp(np.log(early.min(axis=0) / goal).mean())
            reached = (early <= goal).any(axis=0).sum()
            print(
                f"peak {peak}, warm-up {warm_up}: {ratio:.2f} times that, reached on {reached} of {len(SEEDS)} seeds",
                flush=True,
            )


if __name__ == "__main__":
    main()
