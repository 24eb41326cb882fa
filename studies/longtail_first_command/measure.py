"""How the agent of `qan train QanMinibatch-LongTail-v0` on one fixed task fares after 20 trainings: results/losses.csv.

    python -m studies.longtail_first_command.measure --runs FOLDER [--agents 5]

trains and evaluates what the command does, for agent seeds 0, 1, 2, ... on each task; the rivals are played once, since
no seed of an agent changes them. What is in the file is not played again, and runs in FOLDER are gone on with.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from qan_agents.env_ids import task_of
from qan_agents.experiments.defaults import complete_config
from qan_agents.experiments.evaluation import ROWS, Player, play_seeds, rival_player
from qan_agents.experiments.played_task import rivals_of
from qan_agents.experiments.run_config import RunConfig
from qan_agents.experiments.run_folder import CONFIG, Run
from qan_agents.experiments.train import load_agent, start_run, train
from qan_agents.policies.class_rules import ByPower, RulePolicy
from qan_agents.policies.fixed import fixed_env_kwargs
from studies.stored_rows import store_rows, stored_rows

ENV = "QanMinibatch-LongTail-v0"
MEASURED = ("test_loss", "test_accuracy")
LOSSES = Path(__file__).parent / "results" / "losses.csv"
# Of the training split; designs were chosen on the tasks 101 to 104 and other seeds, see the README.
TASKS: dict[str, dict[str, Any]] = {
    "20": {"start_task": 0, "imbalance": 20, "noisy_classes": 0},
    "20, noise 0.4": {"start_task": 1, "imbalance": 20, "noisy_classes": 4, "label_noise": 0.4},
    "50": {"start_task": 2, "imbalance": 50, "noisy_classes": 0},
    "50, noise 0.4": {"start_task": 3, "imbalance": 50, "noisy_classes": 4, "label_noise": 0.4},
    "100": {"start_task": 4, "imbalance": 100, "noisy_classes": 0},
    "100, noise 0.4": {"start_task": 5, "imbalance": 100, "noisy_classes": 4, "label_noise": 0.4},
}
# Rules beside those of the command; the last is the mixture that the agent has and no rule of the command.
MORE, INVERSE = ("square-root", "random"), "inverse-root"


def config_of(task: str, seed: int) -> RunConfig:
    """The command's run on a task, with a seed of the agent."""
    settings = {"num_tasks": 1, "networks": "mlp", **TASKS[task]}
    return complete_config(
        ENV, settings, agent=None, preset=None, episodes=20, seed=seed, num_envs=None, agent_kwargs={}
    )


def agent_player(config: RunConfig, folder: Path) -> Player:
    """The agent of a run, which is trained to its end."""
    run = Run(folder) if (folder / CONFIG).exists() else start_run(folder, config)
    train(run, lambda progress: None, lambda number, episode: None)
    agent = load_agent(run)
    return Player(agent.policy, config.env_kwargs, agent.history)


def rival_players(config: RunConfig) -> dict[str, Player]:
    """The rivals of the command, and some more, by name."""
    task = task_of(ENV, config.env_kwargs)
    players = {name: rival_player(name, config.env_kwargs, task) for name in (*rivals_of(task, None), *MORE)}
    shares = {**config.env_kwargs, **fixed_env_kwargs("class-balanced", task)}
    return {**players, INVERSE: Player(partial(RulePolicy, ByPower(-0.5)), shares)}


def players_of(task: str, runs: Path, agents: int) -> dict[str, Callable[[], Player]]:
    """What makes the players on a task: the rivals, then the agents, which are trained when they are made."""
    rivals = rival_players(config_of(task, 0))
    makers: dict[str, Callable[[], Player]] = {name: partial(rivals.__getitem__, name) for name in rivals}
    for seed in range(agents):
        folder = runs / f"{task.replace(', ', '-').replace(' ', '-')}-seed{seed}"
        makers[agent_name(seed)] = partial(agent_player, config_of(task, seed), folder)
    return makers


def agent_name(seed: int) -> str:
    """Of the agent with a seed, in the table."""
    return f"dqn-ensemble {seed}"


def main() -> None:
    """Play what is missing, and write after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--agents", type=int, default=5, help="seeds of the agent, from 0")
    arguments = parser.parse_args()
    rows = stored_rows(LOSSES)
    there = {(row["task"], row["policy"]) for row in rows}
    for task in TASKS:
        seeds = config_of(task, 0).evaluation_seeds
        for name, make in players_of(task, arguments.runs, arguments.agents).items():
            if (task, name) in there:
                continue
            print(f"{task}: {name}", flush=True)
            episodes = play_seeds(ENV, make(), seeds, ROWS, lambda share: None)
            for seed, episode in zip(seeds, episodes, strict=True):
                measured = {key: f"{episode.final[key]:.6g}" for key in MEASURED}
                rows.append({"task": task, "policy": name, "seed": seed, **measured})
            store_rows(LOSSES, rows)


if __name__ == "__main__":
    main()
