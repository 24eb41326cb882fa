"""Conservative Q-learning of d3rlpy on recorded episodes of random actions, and then one greedy episode.

python -m pip install --no-deps d3rlpy && python -m pip install click colorama dataclasses-json gym h5py \
    scikit-learn structlog && python examples/d3rlpy_cql.py
"""

import argparse

import d3rlpy
import gymnasium as gym
import numpy as np

import qan_gym  # noqa: F401 (registers the environments)

# Trainings of 40 actions, without the pull towards reference weights; {} is the game as registered, of 200.
GAME = {"epochs": 1, "meta_momentum": None}


def play(env, seed, act):
    """An episode; its observations (T, D), actions (T, 1), rewards (T,)."""
    observation, _ = env.reset(seed=seed)
    over, seen = False, []
    while not over:
        action = act(observation)
        following, reward, terminated, truncated, _ = env.step(action)
        seen.append((observation, [action], reward))
        observation, over = following, terminated or truncated
    observations, actions, rewards = zip(*seen, strict=True)
    return np.stack(observations), np.array(actions), np.array(rewards, np.float32)


def main():
    """Record, train, play."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=5, help="to learn from")
    parser.add_argument("--steps", type=int, default=200, help="updates")
    arguments = parser.parse_args()

    d3rlpy.seed(0)
    env = gym.make("QanLR-MNIST5k-v1", **GAME)
    env.action_space.seed(0)
    episodes = [play(env, seed, lambda _: int(env.action_space.sample())) for seed in range(arguments.episodes)]
    observations, actions, rewards = (np.concatenate(part) for part in zip(*episodes, strict=True))
    # The budget ends an episode: it is truncated, never terminated.
    timeouts = np.concatenate([np.arange(len(one[2])) == len(one[2]) - 1 for one in episodes])
    dataset = d3rlpy.dataset.MDPDataset(
        observations,
        actions,
        rewards,
        terminals=np.zeros(len(rewards)),
        timeouts=timeouts,
        action_space=d3rlpy.ActionSpace.DISCRETE,
        action_size=int(env.action_space.n),
    )
    agent = d3rlpy.algos.DiscreteCQLConfig(batch_size=32).create(device="cpu")
    agent.fit(
        dataset,
        n_steps=arguments.steps,
        n_steps_per_epoch=arguments.steps,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        show_progress=False,
    )
    _, chosen, rewards = play(env, 100, lambda observation: int(agent.predict(observation[None])[0]))
    print(f"greedily: {len(chosen)} actions, return {rewards.sum():.3f}")


if __name__ == "__main__":
    main()
