"""Play one episode, keeping the learning rate as it is: the plain training of a CNN, seen as a game."""

import gymnasium as gym

import qan_gym  # registers the environments

RAISE, LOWER, KEEP = 0, 1, 2

env = gym.make("QanLR-MNIST5k-v1")
observation, info = env.reset(seed=0)
over, score = False, 0.0
while not over:
    observation, reward, terminated, truncated, info = env.step(KEEP)
    over, score = terminated or truncated, score + reward
print(f"qan-gym {qan_gym.__version__}: return {score:.2f}, test accuracy {info['test_accuracy']:.1%}")
