"""How the agent of `qan train` without arguments fares on ten seeds of its own, beside its rivals.

    python studies/first_command/ten_seeds.py --runs FOLDER [--seeds 10]

trains and evaluates what the command does, for agent seeds 0, 1, 2, ...; the rivals are played once, since no seed of
an agent changes them. Runs that are in FOLDER are gone on with. After every seed `results/losses.csv` and
`results/table.md` are written anew.
"""

import argparse
import csv
import io
from functools import partial
from pathlib import Path

import numpy as np
import torch

from qan_agents.experiments.defaults import complete_config
from qan_agents.experiments.evaluation import (
    ROWS,
    Player,
    PolicyScores,
    base_schedule,
    baseline_of,
    play_seeds,
    rivals_of,
)
from qan_agents.experiments.run_config import RunConfig
from qan_agents.experiments.run_folder import CONFIG, Run
from qan_agents.experiments.train import load_agent, start_run, train
from qan_agents.experiments.verdict import Lead
from qan_agents.policies.fixed import fixed_env_kwargs, make_policy
from qan_gym.utils.files import write_bytes

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Read the arguments, and play."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=10, help="how many agent seeds")
    arguments = parser.parse_args()
    rivals: list[PolicyScores] = []
    agents: list[PolicyScores] = []
    for seed in range(arguments.seeds):
        config = complete_config(
            "QanLR-MNIST5k-v1", {}, agent=None, preset=None, episodes=20, seed=seed, num_envs=None, agent_kwargs={}
        )
        run = Run(arguments.runs / f"seed{seed}")
        if not (run.folder / CONFIG).exists():
            run = start_run(run.folder, config)
        train(run, lambda progress: None, lambda number, episode: print(f"episode {number + 1}", flush=True))
        agent = load_agent(run)
        task = agent.facts.task
        if not rivals:
            for name in rivals_of(task, None):
                kwargs = {**config.env_kwargs, **fixed_env_kwargs(name, task)}
                rivals.append(played(name, config, Player(partial(make_policy, name), kwargs)))
        agents.append(played(f"agent, seed {seed}", config, Player(agent.policy, config.env_kwargs, agent.history)))
        agent.close()
        write_results(config, agents, rivals, baseline_of(task, None), base_schedule(task))


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
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["policy", "unseen_seed", "test_loss", "test_accuracy"])
    for one in (*rivals, *agents):
        for scores in zip(config.evaluation_seeds, one.test_loss, one.test_accuracy, strict=True):
            writer.writerow([one.policy, *scores])
    write_bytes(RESULTS / "losses.csv", text.getvalue().encode())
    write_bytes(RESULTS / "table.md", ("\n".join(table(agents, rivals, baseline, base)) + "\n").encode())


def table(agents: list[PolicyScores], rivals: list[PolicyScores], baseline: str, base: str | None) -> list[str]:
    """Lines of Markdown: a row for each agent seed, and what they say together."""
    by_name = {one.policy: one for one in rivals}
    unseen = len(rivals[0].test_loss)
    shown = [name for name in (base, baseline) if name is not None]
    lines = [
        f"Test loss, mean over {unseen} unseen seeds ({torch.backends.cpu.get_cpu_capability()}).",
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
