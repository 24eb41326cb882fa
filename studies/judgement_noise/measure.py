"""The noise of a judgement: by the test images and by the seeds, with the images of v0 and of v1 of the bundled games.

    python -m studies.judgement_noise.measure [--seeds 20]

Trains `QanLR-MNIST5k-v1` under four schedules, each with the same seeds, and computes the loss of every test image on
the trained networks. `results/scores.csv` has the scores of each training, `results/noise.json` their standard errors,
which are printed too. Some six minutes of a core.

The 500 test images of v0 are the last 500 of the 1,000 validation images of v1. The 4,000 training images are the same,
and no schedule here looks at a validation image, so the networks that v1 trains can be judged as v0 would have judged
them.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from qan_agents.bench.rollout import play_episodes
from qan_agents.bench.tuned_schedules import ABSOLUTE_ACTIONS, ScheduleController
from qan_agents.bench.tuning_task import Settings, TuningTask, make_env
from qan_gym.vector_env import QanVectorEnv

TASK = TuningTask("QanLR-MNIST5k-v1", {}, runs=0, seed=0)
V0_TEST = 500  # images, the last ones of v1's validation split
ROWS = 10  # trainings in lock-step
CONTROLLERS: dict[str, tuple[str, Settings]] = {
    "constant 0.05": ("constant", {"learning_rate": 0.05}),
    "linear 0.1": ("linear", {"learning_rate": 0.1}),
    "one-cycle 0.13": ("one-cycle", {"learning_rate": 0.13}),
    "one-cycle 0.15": ("one-cycle", {"learning_rate": 0.15}),
}
PAIRS = (
    ("one-cycle 0.13", "constant 0.05"),
    ("one-cycle 0.13", "linear 0.1"),
    ("one-cycle 0.13", "one-cycle 0.15"),
)
JUDGED = 10  # seeds of a judgement by the protocol
NORMAL = 1.96  # standard errors on each side of a 95 % interval

Float64 = NDArray[np.float64]
Scores = dict[str, dict[str, Float64]]  # version -> "loss" and "accuracy" -> (seeds, images)


def train(controller: str, seeds: int) -> Scores:
    """The losses in nats, and whether the answer is right, of every image on every trained network.

    Raises:
        RuntimeError: the mean over the test images is not what the environment says.
    """
    schedule, settings = CONTROLLERS[controller]
    parts: list[dict[str, Any]] = []
    for start in range(0, seeds, ROWS):
        rows = min(ROWS, seeds - start)
        env = make_env(TASK, rows, {**ABSOLUTE_ACTIONS, "validate_every": TASK.batches})
        final = play_episodes(env, ScheduleController(schedule, [settings]), list(range(start, start + rows))).final
        new = [judge(env, row) for row in range(rows)]
        means = [one["v1"]["loss"].mean() for one in new]
        if not np.allclose(means, final["test_loss"], rtol=1e-4):
            raise RuntimeError(f"{controller}: test losses {means}, and the environment says {final['test_loss']}")
        parts += new
    return {
        version: {name: np.stack([part[version][name] for part in parts]) for name in ("loss", "accuracy")}
        for version in ("v0", "v1")
    }


@torch.no_grad()
def judge(env: QanVectorEnv, row: int) -> dict[str, dict[str, Float64]]:
    """The losses and the answers of a row's network on the test images of each version, (images,)."""
    network, params = env.training.network_of(row)
    one = {name: value[None] for name, value in params.items()}
    scores = {}
    for version, split, last in (("v0", "validation", V0_TEST), ("v1", "test", 0)):
        losses, right = [], []
        for images, labels in env.training.data_of(row).batches(split, 500):
            logits = network.forward(one, images[None], False)[0].double()
            losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
            right.append((logits.argmax(dim=1) == labels).double())
        scores[version] = {
            name: torch.cat(values).numpy()[-last:] for name, values in (("loss", losses), ("accuracy", right))
        }
    return scores


def noise_of(scores: Float64) -> dict[str, float]:
    """The mean of (seeds, images), and its standard errors.

    Returns:
        mean; images: standard error over test images of one network, in the mean over the networks; seeds: standard
        deviation of the networks' means; judgement_seeds and judgement_images: standard errors over seeds and over
        images of the mean over JUDGED seeds; least: by what such a mean must differ from 0 for a 95 % interval that
        allows for both to exclude it.
    """
    n, images = scores.shape
    by_seed, by_image = scores.mean(axis=1), scores.mean(axis=0)
    rest = scores - by_seed[:, None] - by_image + scores.mean()  # what a seed and an image have together
    together = float((rest**2).sum()) / (n - 1) / (images - 1) / images
    common = max(float(by_image.var(ddof=1)) / images - together / n, 0.0)  # of the images, whatever the seed
    seeds = float(by_seed.std(ddof=1))
    both = math.sqrt(seeds**2 / JUDGED + common)
    return {
        "mean": float(scores.mean()),
        "images": float(np.mean(scores.std(axis=1, ddof=1)) / math.sqrt(images)),
        "seeds": seeds,
        "judgement_seeds": seeds / math.sqrt(JUDGED),
        "judgement_images": math.sqrt(common + together / JUDGED),
        "least": NORMAL * both,
    }


def main() -> None:
    """Train, print, write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="a folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    played = {controller: train(controller, arguments.seeds) for controller in CONTROLLERS}
    rows, noise = [], {}
    for version in ("v0", "v1"):
        for name in ("loss", "accuracy"):
            for controller, scores in played.items():
                noise[f"{version}, {name}, {controller}"] = noise_of(scores[version][name])
            for one, other in PAIRS:
                difference = played[one][version][name] - played[other][version][name]
                noise[f"{version}, {name}, {one} minus {other}"] = noise_of(difference)
    for controller, scores in played.items():
        for seed in range(arguments.seeds):
            means = {
                f"{version}_test_{name}": round(float(scores[version][name][seed].mean()), 6)
                for version in ("v0", "v1")
                for name in ("loss", "accuracy")
            }
            rows.append({"controller": controller, "seed": seed, **means})
    arguments.out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(arguments.out / "scores.csv", index=False)
    table = pd.DataFrame(noise).T
    (arguments.out / "noise.json").write_text(json.dumps(table.T.round(6).to_dict(), indent=1) + "\n")
    print(table.to_string(float_format="{:.5f}".format))


if __name__ == "__main__":
    main()
