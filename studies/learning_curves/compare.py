"""Learning curves of the bundled DQN and of Stable-Baselines3's, with the same hyperparameters and seeds.

    python studies/learning_curves/compare.py cartpole|mnist5k [--seeds 5] [--json FILE]
    python studies/learning_curves/compare.py cartpole|mnist5k --json FILE --redraw

- `cartpole`: CartPole-v1, 50,000 steps with the hyperparameters that rl-baselines3-zoo gives SB3's DQN.
- `mnist5k`: QanLR-MNIST5k-v1, 20 episodes with the preset quick; the results are of version 0 of the game.

The score of a seed is the mean return of its training episodes: of all of them, and of those of the last quarter of the
training. It is printed for each seed, with the difference of the agents' means and its 95 % interval (Welch). A picture
is written beside the JSON, by `--redraw` without training. Needs scipy (the extra dev).
"""

import argparse
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode

AGENTS = ("dqn", "dqn-native")
NAMES = {"dqn": "Stable-Baselines3", "dqn-native": "bundled"}
STEPS = 50_000  # of CartPole
EPISODES = 20  # of QanLR-MNIST5k-v1
LAST_QUARTER = 0.75  # share of the training at which it begins

Curve = list[tuple[float, float]]  # share of the training, return


def cartpole(agent: str, seed: int) -> Curve:
    """The training episodes of one agent on CartPole."""
    from stable_baselines3 import DQN as SB3DQN
    from stable_baselines3.common.monitor import Monitor

    from qan_agents.agents.dqn import sb3_arguments
    from qan_agents.dqn import DQN, DQNConfig, EnvInterface, train

    config = DQNConfig(
        hidden=(256, 256),
        learning_rate=2.3e-3,
        target_update_interval=10,
        update_every=256,
        gradient_steps=128,
        exploration_final=0.04,
        exploration_steps=8_000,
    )
    if agent == "dqn":
        env = Monitor(gym.make("CartPole-v1"))
        model = SB3DQN("MlpPolicy", env, train_freq=256, seed=seed, device="cpu", **sb3_arguments(config, STEPS))
        model.learn(STEPS)
        ends = np.cumsum(env.get_episode_lengths())
        return [(float(end) / STEPS, value) for end, value in zip(ends, env.get_episode_rewards(), strict=True)]
    mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
    envs = gym.make_vec("CartPole-v1", num_envs=1, vectorization_mode="sync", vector_kwargs=mode)
    finished = train(DQN(config, EnvInterface.of(envs), seed=seed), envs, STEPS, seed=seed)
    return [(step / STEPS, value) for step, value in finished]


def mnist5k(agent: str, seed: int) -> Curve:
    """The training episodes of one agent on QanLR-MNIST5k-v1."""
    from qan_agents.experiments.run_config import RunConfig
    from qan_agents.experiments.run_folder import EPISODES
    from qan_agents.experiments.train import start_run, train

    with tempfile.TemporaryDirectory() as folder:
        run = start_run(Path(folder) / "run", RunConfig("QanLR-MNIST5k-v1", {}, agent, "quick", EPISODES, seed))
        train(run, lambda progress: None, lambda number, episode: None)
        rows = run.table(EPISODES)
    return [((int(row["episode"]) + 1) / EPISODES, float(row["return"])) for row in rows]


ENVIRONMENTS = {"cartpole": cartpole, "mnist5k": mnist5k}


def one_thread() -> None:
    """One thread per process: more would compete for the cores."""
    torch.set_num_threads(1)


def difference(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Bundled minus SB3 and half its 95 % interval."""
    from scipy import stats

    found = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    return {"difference": float(np.mean(ours) - np.mean(theirs)), "low": float(found.low), "high": float(found.high)}


def scores(curves: dict[str, list[Curve]]) -> dict[str, Any]:
    """Mean returns by seed and agent, and the difference of the agents."""
    table: dict[str, Any] = {}
    for name, start in (("all episodes", 0.0), ("last quarter", LAST_QUARTER)):
        means = {
            agent: [float(np.mean([value for when, value in curve if when >= start])) for curve in some]
            for agent, some in curves.items()
        }
        table[name] = {**means, **difference(means["dqn-native"], means["dqn"])}
    return table


def draw(environment: str, curves: dict[str, list[Curve]], path: Path) -> None:
    """Write a picture of the curves: a thin line per seed, a thick one for their mean."""
    from matplotlib.figure import Figure

    from qan_agents.experiments.plots import save

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    grid = np.linspace(0.02, 1, 50)
    for (agent, some), (color, style) in zip(curves.items(), (("#D55E00", "--"), ("#0072B2", "-")), strict=True):
        lines = []
        for curve in some:
            when, values = np.array(curve).T
            episodes = 1 if environment == "mnist5k" else 20
            means = np.array([values[max(0, end - episodes + 1) : end + 1].mean() for end in range(len(values))])
            lines.append(np.interp(grid, when, means))
            axes.plot(100 * grid, lines[-1], style, color=color, linewidth=0.7, alpha=0.5)
        label = f"{NAMES[agent]}, mean of {len(some)} seeds"
        axes.plot(100 * grid, np.mean(lines, axis=0), style, color=color, linewidth=2.5, label=label)
    what = "return of the episode" if environment == "mnist5k" else "mean return of the last 20 episodes"
    axes.set(xlabel="share of the training (%)", ylabel=what)
    axes.set_title(f"{environment}: two DQNs with the same hyperparameters; thin: single seeds")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)


def main() -> None:
    """Train, print, write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environment", choices=ENVIRONMENTS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here, and the picture beside them")
    parser.add_argument("--redraw", action="store_true", help="only draw the picture again, from the JSON")
    arguments = parser.parse_args()
    if arguments.redraw:
        curves = json.loads(arguments.json.read_text())["curves"]
        draw(arguments.environment, curves, arguments.json.with_suffix(".png"))
        return
    seeds = range(arguments.seeds)
    with ProcessPoolExecutor(arguments.processes, get_context("spawn"), initializer=one_thread) as pool:
        play = ENVIRONMENTS[arguments.environment]
        waiting = {agent: [pool.submit(play, agent, seed) for seed in seeds] for agent in AGENTS}
        curves = {agent: [one.result() for one in some] for agent, some in waiting.items()}
    table = scores(curves)
    for name, row in table.items():
        for agent in AGENTS:
            print(f"{name}, {NAMES[agent]}: " + ", ".join(f"{value:.4g}" for value in row[agent]))
        print(f"{name}, bundled minus SB3: {row['difference']:+.3g} (95 % {row['low']:+.3g} to {row['high']:+.3g})")
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"torch": torch.__version__, "scores": table, "curves": curves}) + "\n")
        draw(arguments.environment, curves, arguments.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
