"""APPO of Sample-Factory, in one process.

python -m pip install --no-deps sample-factory && python -m pip install "numpy<2.4" colorlog opencv-python-headless \
    psutil signal-slot-mp tensorboardx threadpoolctl wandb && python examples/sample_factory_appo.py

Its last release (2023) asks for NumPy before 2 and Gymnasium before 1; it runs with later ones, but not with NumPy 2.4.
"""

import sys
import tempfile

import gymnasium as gym
from gymnasium.wrappers import RecordEpisodeStatistics
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.train import run_rl

ENV = "QanLR-MNIST5k-v1"
# Trainings of 40 actions, without the pull towards reference weights; {} is the game as registered, of 200.
GAME = {"epochs": 1, "meta_momentum": None}


PLAYED = []  # the environments, which remember their returns


def make(name, config=None, env_config=None, render_mode=None):
    """The game; the id says what registers it."""
    PLAYED.append(RecordEpisodeStatistics(gym.make(f"qan_gym:{name}", render_mode=render_mode, **GAME)))
    return PLAYED[-1]


def main():
    """Train for some hundred steps."""
    register_env(ENV, make)
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            *("--algo=APPO", f"--env={ENV}", "--experiment=qan", f"--train_dir={folder}", "--device=cpu"),
            *("--serial_mode=True", "--async_rl=False", "--num_workers=1", "--num_envs_per_worker=1"),
            *("--worker_num_splits=1", "--use_rnn=False", "--recurrence=1", "--rollout=20", "--batch_size=40"),
            *("--train_for_env_steps=200", "--normalize_input=False", *sys.argv[1:]),
        ]
        parser, _ = parse_sf_args(argv=arguments)
        status = run_rl(parse_full_cfg(parser, arguments))
    for score in [score for env in PLAYED for score in env.return_queue]:
        print(f"return {score:.3f}")
    return status


if __name__ == "__main__":
    sys.exit(main())
