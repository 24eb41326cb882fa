"""rl-baselines3-zoo: its DQN with the hyperparameters that come with this package, then its `enjoy` and a video.

python -m pip install -e ".[zoo,video]" && python examples/zoo_dqn.py --steps 800

Each line that it runs is printed, to be copied.
"""

import argparse
import shlex
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

ENV = "QanLR-MNIST5k-v1"
# Trainings of 40 actions, without the pull towards reference weights; without this line the game as registered, of 200.
GAME = ["--env-kwargs", "epochs:1", "meta_momentum:None"]
# `record_video` has no --gym-packages: the game is registered before it runs.
RECORD = "import qan_gym, runpy; runpy.run_module('rl_zoo3.record_video', run_name='__main__')"


def run(*arguments):
    """Run Python with these arguments, and stop where it fails."""
    print("python", shlex.join(arguments), flush=True)
    subprocess.run([sys.executable, *arguments], check=True)


def main():
    """Train, play, and film."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800, help="actions of the training")
    parser.add_argument("--folder", type=Path, help="of the results; a temporary one where none is given")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        agent = ["--algo", "dqn", "--env", ENV, "-f", str(folder)]
        hyperparameters = str(files("qan_agents") / "zoo/dqn.yml")
        steps = ["-n", str(arguments.steps)]
        registered = ["--gym-packages", "qan_gym"]
        run("-m", "rl_zoo3.train", *agent, *registered, "--conf-file", hyperparameters, *GAME, *steps)
        run("-m", "rl_zoo3.enjoy", *agent, *registered, "-n", "80", "--no-render")
        run("-c", RECORD, *agent, "-n", "40", "-o", str(folder / "videos"))
        for video in (folder / "videos").glob("*.mp4"):
            print(f"filmed {video.name}, {video.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
