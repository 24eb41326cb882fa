"""Save an episode to a file, restore it in another environment, and try every action from the same moment."""

import tempfile
from pathlib import Path

import gymnasium as gym

import qan_gym  # noqa: F401 (registers the environments)
from qan_gym.state import State

env = gym.make("QanLR-MNIST5k-v1")
env.reset(seed=0)
for _ in range(20):
    env.step(2)

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "moment.safetensors"
    env.unwrapped.get_state().save(file)
    moment = State.load(file)

fork = gym.make("QanLR-MNIST5k-v1")
fork.reset()
for action, name in enumerate(("raise", "lower", "keep")):
    fork.unwrapped.set_state(moment)
    _, reward, _, _, info = fork.step(action)
    print(f"{name}: learning rate {info['learning_rate']:.3f}, loss {info['loss']:.4f}, reward {reward:+.4f}")
