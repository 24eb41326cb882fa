"""The moving pictures of the environments' pages: python docs/pictures.py [ID ...] [--dataset FILE.npz]

Each is an episode of random actions, or its beginning, and its baseline run, as `env.render()` shows it, in
docs/pictures/ID.webp. Without arguments all are made anew; that of CIFAR-10, without a baseline run, takes some nine
CPU minutes. MNIST and CIFAR-10 are read from $QAN_GYM_DATA or the user's cache, or one of them from a file; nothing is
downloaded.
"""

import argparse
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image

import qan_gym  # noqa: F401 (registers the environments)
from qan_gym.data.datasets import data_root
from qan_gym.data.downloads import SOURCES, missing
from qan_gym.tasks import TASKS
from qan_gym.utils.files import write_aside

PICTURES = Path(__file__).parent / "pictures"
LIMIT = 400_000  # bytes of a picture
FRAMES = 24
WIDTH = 720  # pixels
SECONDS = 6  # a round
QUALITIES = (75, 50, 25)  # of WebP; the first that keeps the limit is taken
SEED = 0

# How many actions are shown; None: a whole episode.
ACTIONS = {
    "QanLR-MNIST-v0": 5500,  # an epoch
    "QanMinibatch-MNIST-v0": 156,  # an epoch
    "QanLR-MNIST5k-v1": None,
    "QanMinibatch-MNIST5k-v1": None,
    "QanLR-CIFAR10-v0": None,
    "QanLR-Family-v0": None,
    "QanMinibatch-LongTail-v0": None,
}
# What `gym.make` is given beside the id: a network for CPUs, no reference and no baseline to train for long, and the
# accuracy that a frame names measured not long before it.
KWARGS = {
    "QanLR-CIFAR10-v0": {
        "network": "resnet-8",
        "meta_momentum": None,
        "reference": None,
        "validate_every": 65,
        "baseline_run": False,
    }
}


def frames(env_id: str, kwargs: dict[str, Any]) -> list[Image.Image]:
    """About FRAMES pictures of an episode of random actions, its first and last moment among them."""
    env = gym.make(env_id, **{"render_mode": "rgb_array", "baseline_run": True, **kwargs})
    env.reset(seed=SEED)
    env.action_space.seed(SEED)
    actions = ACTIONS[env_id] or env.unwrapped.episode_length
    shown = set(np.linspace(0, actions, FRAMES).round().astype(int).tolist())
    pictures = [scaled(env)]
    for step in range(1, actions + 1):
        env.step(env.action_space.sample())
        if step in shown:
            pictures.append(scaled(env))
    env.close()
    return pictures


def scaled(env: gym.Env) -> Image.Image:
    """What is rendered now, WIDTH pixels wide."""
    picture = Image.fromarray(env.render())
    return picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)


def write(path: Path, pictures: list[Image.Image]) -> None:
    """An animated WebP of at most LIMIT bytes, that rests on its last picture.

    Raises:
        ValueError: it is larger in the lowest quality.
    """
    durations = [1000 * SECONDS // len(pictures)] * (len(pictures) - 1) + [2000]  # milliseconds
    look = {"save_all": True, "append_images": pictures[1:], "duration": durations, "loop": 0, "method": 4}
    for quality in QUALITIES:
        film = BytesIO()
        pictures[0].save(film, "webp", quality=quality, **look)
        if len(film.getvalue()) <= LIMIT:
            with write_aside(path) as aside:
                aside.write_bytes(film.getvalue())
            print(f"{path.name}: {len(pictures)} frames, {path.stat().st_size / 1000:.0f} kB, quality {quality}")
            return
    raise ValueError(f"{path} has more than {LIMIT:,} bytes: take fewer frames, or make them smaller")


def main() -> None:
    """Make the pictures of the ids on the command line, or of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ids", metavar="ID", nargs="*", help=f"of {', '.join(ACTIONS)}")
    parser.add_argument("--dataset", metavar="FILE.npz", help="in the place of the id's data")
    arguments = parser.parse_args()
    ids = arguments.ids or list(ACTIONS)
    if unknown := set(ids) - set(ACTIONS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(ACTIONS)}")
    for env_id in ids:
        kwargs = KWARGS.get(env_id, {}) | ({"dataset": arguments.dataset} if arguments.dataset else {})
        dataset = kwargs.get("dataset", TASKS[env_id].dataset)
        if dataset in SOURCES and missing(dataset, data_root()):
            print(f"{env_id}: {dataset} is not in {data_root()}, its picture stays as it is", file=sys.stderr)
            continue
        write(PICTURES / f"{env_id}.webp", frames(env_id, kwargs))


if __name__ == "__main__":
    main()
