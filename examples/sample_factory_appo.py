"""APPO of Sample-Factory, in one process.

Its last release stops at the first rollout beside the NumPy that this package needs (docs/everywhere.md).
"""

import sys
import tempfile

import gymnasium as gym
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.train import run_rl

ENV = "QanLR-MNIST5k-v1"
# Trainings of 40 actions, without the pull towards reference weights; {} is the game as registered, of 200.
GAME = {"epochs": 1, "meta_momentum": None}


def make(name, config=None, env_config=None, render_mode=None):
    """The game; the id says what registers it."""
    return gym.make(f"qan_gym:{name}", render_mode=render_mode, **GAME)


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
    print(f"status {status}")
    return status


if __name__ == "__main__":
    sys.exit(main())
