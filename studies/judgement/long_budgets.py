"""The controllers on the held-out tasks of the longest budgets alone, from what `qan judge` has played.

    python -m studies.judgement.long_budgets runs/learning-rate --least 2000 sgd-0 sgd-1 sgd-2 adamw-0 adamw-1 adamw-2

The folder is that of a judgement of these controllers, `--tasks` and `--seeds` are what it was made with. Nothing is
trained but what is missing there.
"""

import argparse
from pathlib import Path

from qan_agents.controllers.controller import FAMILY
from qan_agents.controllers.shipped import controller_file
from qan_agents.judging.contenders import load_controllers
from qan_agents.judging.problems import PROBLEMS
from qan_agents.judging.results import Results
from qan_agents.judging.rivals import rivals
from qan_agents.judging.runner import play_missing
from qan_agents.judging.statistics import difference, scores_of


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the judgement")
    parser.add_argument("controllers", nargs="+", type=Path, help="files, or those that ship: sgd-0, ...")
    parser.add_argument("--least", type=int, default=2_000, help="mini-batches of the budget")
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rival", action="append", help="a rival, or the first word of several; may be repeated")
    arguments = parser.parse_args()
    problems = [one for one in PROBLEMS[FAMILY](arguments.tasks, ["mlp"]) if one.tasks[0].budget >= arguments.least]
    judged = load_controllers([controller_file(path) for path in arguments.controllers], None)
    others = rivals(arguments.rival or [], family=FAMILY)
    results = Results(arguments.folder / "results")
    play_missing(results, [*judged, *others], problems, arguments.seeds, lambda _: None, lambda *_: None)
    names = {one.name for one in judged}
    scores = scores_of(results, [*judged, *others], problems, arguments.seeds)
    print(f"{len(problems)} tasks\n\n| controller | rival | mean | won |\n| --- | --- | --- | --- |")
    for one in (score for score in scores if score.name in names):
        found = [(difference(one, rival), rival) for rival in scores if rival.name not in names]
        for how, rival in sorted(found, key=lambda pair: -pair[0].mean.value):
            mean = how.mean
            cell = f"{mean.value:+.3f} ({mean.low:+.3f} to {mean.high:+.3f})"
            print(f"| {one.title} | {rival.title} | {cell} | {100 * how.won.value:.0f} % |")


if __name__ == "__main__":
    main()
