"""Speed of learning: the bundled DQN beside Stable-Baselines3's, on the same vector environment.

    python benchmarks/agents.py [--device cpu|cuda] [--num-envs N] [--rounds 10] [--json FILE]

Environment steps per second while learning, with the same hyperparameters, networks and number of updates. The agents
and the environment alone (random actions) take turns within each round; a ratio is the median over the rounds of the
ratio within a round. What a step takes beyond the environment's own time is the agent's share.

The environments: CartPole-v1 of Gymnasium, whose step takes almost no time (CPU only), and QanLR-MNIST5k-v1 with one
mini-batch of 10 per action. Each is measured with three numbers of updates per environment step: 1/4 as in the paper, 2
as in the preset quick, and 8, for learning from few episodes. With `--device cuda --num-envs 128 --rounds 4` all this
takes about a minute on one H100.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from throughput import Contest, hardware

from qan_agents.agents.dqn import sb3_arguments
from qan_agents.dqn import DQN, PRESETS, DQNConfig, EnvInterface, TensorVectorEnv
from qan_agents.sb3 import GymnasiumVecEnv
from qan_agents.sb3.extractor import Extractor, extractor_arguments
from qan_gym.vector_env import QanVectorEnv

NUM_ENVS = {"cpu": 16, "cuda": 128}
PRESET = "quick"  # of both agents
LONG = 10_000_000  # steps over which epsilon decreases: it hardly changes while it is measured
BUFFER = 50_000
RATES = {"1/4": (4, 1), "2": (1, 2), "8": (1, 8)}  # updates per step: update_every, gradient_steps
SB3_UPDATES = 512  # in a round, about: on CUDA an update of Stable-Baselines3 takes milliseconds, whatever its size


def cartpole(num_envs: int, device: str, output: str) -> VectorEnv:
    """Gymnasium's CartPole, N in one process."""
    mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
    return gym.make_vec("CartPole-v1", num_envs=num_envs, vectorization_mode="sync", vector_kwargs=mode)


def mnist5k(num_envs: int, device: str, output: str) -> VectorEnv:
    """N CNNs in training."""
    return gym.make_vec(
        "QanLR-MNIST5k-v1",
        num_envs=num_envs,
        device=device,
        output=output,
        autoreset_mode=AutoresetMode.SAME_STEP,
        batches_per_action=1,
    )


ENVIRONMENTS: dict[str, Callable[[int, str, str], VectorEnv]] = {"CartPole-v1": cartpole, "QanLR-MNIST5k-v1": mnist5k}


def settings(env_id: str, rate: str) -> DQNConfig:
    """The hyperparameters that both agents have."""
    every, updates = RATES[rate]
    config = DQNConfig() if env_id == "CartPole-v1" else PRESETS[PRESET](LONG)
    own = {"buffer_size": BUFFER, "learning_starts": 0, "exploration_steps": LONG}
    return replace(config, update_every=every, gradient_steps=updates, **own)


def bundled(env: VectorEnv, config: DQNConfig, device: str) -> Callable[[], None]:
    """One step of every environment, and the updates after it."""
    agent = DQN(config, EnvInterface.of(env), device)
    tensors = TensorVectorEnv(env, agent.device)
    agent.begin(tensors.reset(0))

    def step() -> None:
        agent.remember(tensors.step(agent.act()))
        agent.learn()

    return step


def sb3(env: VectorEnv, config: DQNConfig, device: str) -> Callable[[int], None]:
    """A number of steps of every environment, and the updates after them."""
    from stable_baselines3 import DQN as SB3DQN

    vec = GymnasiumVecEnv(env)
    arguments = sb3_arguments(config, LONG)
    updates = updates_per_step(config, env.num_envs)
    if isinstance(env.unwrapped, QanVectorEnv):
        extractor = {**extractor_arguments(env.unwrapped, config.features), "features_extractor_class": _Stacked}
        arguments["policy_kwargs"] |= extractor
    arguments |= {"gradient_steps": updates, "train_freq": (1, "step"), "seed": 0, "device": device}
    model = SB3DQN("MlpPolicy", vec, **arguments)
    return lambda steps: model.learn(steps * env.num_envs, reset_num_timesteps=False)


class _Stacked(Extractor):
    """Reads single frames, without an axis of the history."""

    def __init__(self, space: gym.spaces.Box, **kwargs: Any) -> None:
        stacked = gym.spaces.Box(space.low[None], space.high[None], dtype=space.dtype)
        super().__init__(stacked, **kwargs)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return super().forward(observations[:, None])


def updates_per_step(config: DQNConfig, num_envs: int) -> int:
    """Updates after a step of N environments."""
    return num_envs * config.gradient_steps // config.update_every


def compare(env_id: str, rate: str, num_envs: int, device: str, rounds: int) -> dict[str, Any]:
    """The agents and the environment alone."""
    config = settings(env_id, rate)
    make = ENVIRONMENTS[env_id]
    alone = make(num_envs, device, "torch")
    tensors = TensorVectorEnv(alone, torch.device(device))
    tensors.reset(0)
    actions = torch.randint(int(alone.single_action_space.n), (num_envs,), device=device)
    calls = 60 if env_id == "CartPole-v1" else 10
    sb3_calls = max(1, min(calls, SB3_UPDATES // updates_per_step(config, num_envs))) if device == "cuda" else calls
    threads = torch.get_num_threads()
    contest = Contest(device)
    contest.enter("environment", lambda: tensors.step(actions), num_envs, threads, calls)
    contest.enter("bundled", bundled(make(num_envs, device, "torch"), config, device), num_envs, threads, calls)
    learn = sb3(make(num_envs, device, "numpy"), config, device)
    contest.enter("SB3", lambda: learn(sb3_calls), num_envs * sb3_calls, threads, 1)
    contest.play(rounds)
    times = {name: contest.median(name) for name in contest.times}
    return {
        "environment": env_id,
        "preset": PRESET,
        "updates_per_step": rate,
        "num_envs": num_envs,
        "steps_per_second": {name: 1e3 / value for name, value in times.items()},
        "sb3_over_bundled": contest.ratio("SB3", "bundled"),
        "agent_share": {name: 1 - times["environment"] / times[name] for name in ("bundled", "SB3")},
        "at_best": contest.ratio("SB3", "environment"),
    }


def main() -> None:
    """Measure, print, write a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=NUM_ENVS, default="cpu")
    parser.add_argument("--num-envs", type=int, help="environments in lock-step; default: 16 on cpu, 128 on cuda")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    if arguments.num_envs is not None and arguments.num_envs < 4:
        parser.error("--num-envs must be at least 4: one update per four environment steps is measured")
    num_envs = arguments.num_envs or NUM_ENVS[arguments.device]
    environments = ["QanLR-MNIST5k-v1"] if arguments.device == "cuda" else list(ENVIRONMENTS)
    rows = []
    print(f"{hardware(arguments.device)}, N = {num_envs}", flush=True)
    for env_id in environments:
        for rate in RATES:
            row = compare(env_id, rate, num_envs, arguments.device, arguments.rounds)
            rows.append(row)
            ratio, share, speed = row["sb3_over_bundled"], row["agent_share"], row["steps_per_second"]
            speeds = f"{speed['SB3']:.0f} and {speed['bundled']:.0f} steps/s"
            quartiles = f"{ratio['median']:.2f} times (quartiles {ratio['low']:.2f} to {ratio['high']:.2f}"
            print(
                f"{env_id}, {rate} updates per step: {speeds} (environment alone {speed['environment']:.0f}), "
                f"{quartiles}; {row['at_best']['median']:.1f} if the agent took no time); the agent's share "
                f"{share['SB3']:.0%} and {share['bundled']:.0%}",
                flush=True,
            )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"hardware": hardware(arguments.device), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
