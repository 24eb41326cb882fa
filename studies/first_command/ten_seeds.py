"""How the agent of `qan train` without arguments fares on ten seeds of its own, beside its rivals.

    python studies/first_command/ten_seeds.py --runs FOLDER [--seeds 10]

trains and evaluates what the command does, for agent seeds 0, 1, 2, ...; the rivals are played once, since no seed of
an agent changes them. Runs that are in FOLDER are gone on with, and what is in `results/losses.csv` is not played
again. After every seed it and `results/table.md` are written anew.
"""

import argparse
from pathlib import Path

import numpy as np

from qan_agents.env_ids import task_of
from qan_agents.experiments.defaults import complete_config
from qan_agents.experiments.evaluation import (
    ROWS,
    Player,
    PolicyScores,
    play_seeds,
    rival_player,
    scores_of,
)
from qan_agents.experiments.played_task import base_schedule, baseline_of, rivals_of
from qan_agents.experiments.run_config import RunConfig
from qan_agents.experiments.run_folder import CONFIG, Run, encode_rows, read_rows
from qan_agents.experiments.train import load_agent, start_run, train
from qan_agents.experiments.verdict import Lead
from qan_gym.utils.files import write_bytes

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Read the arguments, and play."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=10, help="how many agent seeds")
    arguments = parser.parse_args()
    path = RESULTS / "losses.csv"
    known = {one.policy: one for one in scores_of(read_rows(path))} if path.exists() else {}
    rivals: list[PolicyScores] = []
    agents: list[PolicyScores] = []
    for seed in range(arguments.seeds):
        name = f"agent, seed {seed}"
        config = complete_config(
            "QanLR-MNIST5k-v1", {}, agent=None, preset=None, episodes=20, seed=seed, num_envs=None, agent_kwargs={}
        )
        task = task_of(config.env, config.env_kwargs)
        for rival in rivals_of(task, None) if seed == 0 else []:
            rivals.append(known.get(rival) or played(rival, config, rival_player(rival, config.env_kwargs, task)))
        agents.append(known.get(name) or trained_and_played(name, config, arguments.runs / f"seed{seed}"))
        write_results(config, agents, rivals, baseline_of(task, None), base_schedule(task))


def trained_and_played(name: str, config: RunConfig, folder: Path) -> PolicyScores:
    """The scores of the agent of a run, which is trained to its end."""
    run = Run(folder) if (folder / CONFIG).exists() else start_run(folder, config)
    train(run, lambda progress: None, lambda number, episode: print(f"{name}, episode {number + 1}", flush=True))
    agent = load_agent(run)
    scores = played(name, config, Player(agent.policy, config.env_kwargs, agent.history))
    agent.close()
    return scores


def played(name: str, config: RunConfig, player: Player) -> PolicyScores:
    """The scores of a player on the unseen seeds of a run."""
    print(f"playing unseen seeds: {name}", flush=True)
    episodes = play_seeds(config.env, player, config.evaluation_seeds, ROWS, lambda share: None)
    losses, accuracies = ([episode.final[score] for episode in episodes] for score in ("test_loss", "test_accuracy"))
    return PolicyScores(name, losses, accuracies)


def write_results(
    config: RunConfig, agents: list[PolicyScores], rivals: list[PolicyScores], baseline: str, base: str | None
) -> None:
    """Write every loss, and a table for people."""
    RESULTS.mkdir(exist_ok=True)
    rows = [
        {"policy": one.policy, "unseen_seed": seed, "test_loss": loss, "test_accuracy": accuracy}
        for one in (*rivals, *agents)
        for seed, loss, accuracy in zip(config.evaluation_seeds, one.test_loss, one.test_accuracy, strict=True)
    ]
    path = RESULTS / "losses.csv"
    write_bytes(path, encode_rows(path, rows, header=True))
    write_bytes(RESULTS / "table.md", ("\n".join(table(agents, rivals, baseline, base)) + "\n").encode())


def table(agents: list[PolicyScores], rivals: list[PolicyScores], baseline: str, base: str | None) -> list[str]:
    """Lines of Markdown: a row for each agent seed, and what they say together."""
    by_name = {one.policy: one for one in rivals}
    unseen = len(rivals[0].test_loss)
    shown = [name for name in (base, baseline) if name is not None]
    lines = [
        f"Test loss, mean over {unseen} unseen seeds.",
        "",
        f"| agent seed | agent | {' | '.join(shown)} | better than {baseline} on |",
        f"| --- {'| --- ' * (2 + len(shown))}|",
    ]
    for number, one in enumerate(agents):
        better = sum(mine < its for mine, its in zip(one.test_loss, by_name[baseline].test_loss, strict=True))
        rival = " | ".join(f"{np.mean(by_name[name].test_loss):.4f}" for name in shown)
        lines.append(f"| {number} | {np.mean(one.test_loss):.4f} | {rival} | {better} of {unseen} |")
    means = [float(np.mean(one.test_loss)) for one in agents]
    together = PolicyScores("agent", means, [])
    lines.append("")
    for rival_scores in rivals:
        mean = float(np.mean(rival_scores.test_loss))
        same = PolicyScores(rival_scores.policy, [mean] * len(means), [])
        ahead = sum(one < mean for one in means)
        stands = Lead.of(together, same).against(rival_scores.policy)
        lines.append(
            f"- {rival_scores.policy}, {mean:.4f}: the agent is lower on {ahead} of {len(means)} agent seeds, and "
            f"on average it is {stands} (95 % interval over the agent seeds)."
        )
    return lines


if __name__ == "__main__":
    main()
