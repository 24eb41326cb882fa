"""A game of one's own, in one file: the agent controls the momentum of SGD instead of its learning rate.

    python examples/custom_game.py                                   # two episodes of random actions, a frame, PPO
    cd examples && qan train custom_game:QanMomentum-MNIST5k-v1      # Stable-Baselines3's DQN, pictures, evaluation

`register_game` takes an object that says what the actions are and what they change in N runs at once; everything else
(vector environments, rendering, saving, agents) works as for the games that come with the package.
"""

import gymnasium as gym
import torch

import qan_gym
from qan_gym.games import Game

FASTER, SLOWER, KEEP = 0, 1, 2
STEP = 1.5  # factor of one action on 1 - momentum


class MomentumGame(Game):
    """Raise, lower or keep the momentum, within [0, 0.99], at a constant learning rate."""

    controlled = "momentum"
    hyperparameters = ("momentum",)  # a tensor of the run, (N,), which then stands in `info` as well
    features = ("momentum",)  # on the score line, beside the seven features of every game
    curve = "momentum"  # what frames and plots draw
    curve_is_logarithmic = False

    def action_space(self, config, n_classes):
        return gym.spaces.Discrete(3)

    def action_names(self, config, n_classes):
        return ["raise", "lower", "keep"]

    def no_op(self, config):
        return KEEP

    def curve_limits(self, config):
        return 0.0, 1.0

    def apply(self, run, actions, config):
        """Divide or multiply 1 - momentum, for N runs; actions (N,) int64."""
        xp = run.xp  # NumPy on CPU, PyTorch on CUDA: operators and the Array API standard are the same
        factor = xp.where(actions == FASTER, 1 / STEP, xp.where(actions == SLOWER, STEP, 1.0))
        changed = 1 - (1 - run.momentum) * factor
        run.momentum[:] = xp.minimum(xp.maximum(changed, 0.0), 0.99)


qan_gym.register_game("momentum", MomentumGame())
gym.register(
    "QanMomentum-MNIST5k-v1",
    entry_point="qan_gym.env:QanEnv",
    vector_entry_point="qan_gym.vector_env:QanVectorEnv",
    kwargs={"env_id": "QanLR-MNIST5k-v1", "game": "momentum", "momentum": 0.5},
)


def main() -> None:
    """Play, draw, and train PPO on four trainings at once."""
    from stable_baselines3 import PPO

    from qan_agents.sb3 import vec_env

    env = gym.make("QanMomentum-MNIST5k-v1", render_mode="rgb_array", epochs=1)
    for seed in range(2):
        env.reset(seed=seed)
        over = False
        while not over:
            _, _, terminated, truncated, info = env.step(env.action_space.sample())
            over = terminated or truncated
        print(f"seed {seed}: momentum {info['momentum']:.3f}, test accuracy {info['test_accuracy']:.1%}")
    print("a frame:", env.render().shape)
    torch.set_num_threads(1)
    agent = PPO("MlpPolicy", vec_env("QanMomentum-MNIST5k-v1", 4, epochs=1), n_steps=40, batch_size=40, seed=0)
    agent.learn(160)
    print("PPO has learned from", agent.num_timesteps, "actions")


if __name__ == "__main__":
    main()
