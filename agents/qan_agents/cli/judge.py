"""`qan judge`: controllers on tasks that they have never seen, against what a practitioner would do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qan_agents.budgets import caution
from qan_agents.cli.common import (
    INTERRUPTED,
    console,
    expanded,
    extra_required,
    print_wrapped,
    progress_bar,
    refuse_beside,
    table_of,
)
from qan_gym.utils.counts import counted

if TYPE_CHECKING:
    from qan_agents.judging.contenders import Contender
    from qan_agents.judging.problems import Problem
    from qan_agents.judging.statistics import Judgement, Scores

FAMILY_ONLY = ("tasks", "networks")  # options


def judge(
    context: typer.Context,
    controllers: Annotated[
        list[Path],
        typer.Argument(
            metavar="CONTROLLER...",
            help="Files of qan meta-train, or controllers that ship: adamw-N, long-tail-N and sgd-N, with N 0, 1 or 2; "
            "qan list NAME says what one is.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="The folder of results and report; what is done there is not done again.")
    ] = Path("judgement"),
    tier: Annotated[
        Literal["family", "outer"], typer.Option(help="The family's held-out tasks, or some that are unlike them.")
    ] = "family",
    tasks: Annotated[int, typer.Option(min=1, max=100_000, help="Held-out tasks.")] = 200,
    seeds: Annotated[int, typer.Option(min=1, max=1_000, help="Trainings of each contender on each task.")] = 3,
    networks: Annotated[
        list[str] | None, typer.Option(help="A kind of network of the tasks; may be repeated. [default: mlp]")
    ] = None,
    cifar: Annotated[
        str, typer.Option(help="Photographs of the outer tier: a data set's name, or the path of an .npz file.")
    ] = "cifar10",
    rival: Annotated[
        list[str] | None,
        typer.Option(help="A rival, or the first word of several; may be repeated. [default: all]"),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="A name for the controllers, which makes them replicates of each other.")
    ] = None,
    scoreboard: Annotated[Path | None, typer.Option(help="A JSON file that a row per optimizer is added to.")] = None,
) -> None:
    """Judge controllers on held-out tasks, with no training on them, against schedules and optimizers."""
    if tier == "outer":
        allowed = {parameter.name for parameter in context.command.params if parameter.name} - set(FAMILY_ONLY)
        refuse_beside(context, "--tier outer", allowed)
    with extra_required("bench"):
        from qan_agents.controllers.shipped import controller_file
        from qan_agents.judging.contenders import load_controllers
        from qan_agents.judging.results import Results
        from qan_agents.judging.rivals import median_curves, rivals
        from qan_agents.judging.runner import play_missing
        from qan_agents.judging.scoreboard import add_rows, check_scoreboard, rows_of, rules_of
        from qan_agents.judging.statistics import judge as compare
        from qan_agents.judging.statistics import scores_of
    out, scoreboard = expanded(out) or out, expanded(scoreboard)
    kinds = list(dict.fromkeys(networks or ["mlp"]))
    judged = load_controllers([controller_file(expanded(path) or path) for path in controllers], label)
    family = judged[0].controller.settings.family
    others = rivals(rival or [], family=family)
    problems = _problems(family, tier, tasks, kinds, cifar)
    contenders: list[Contender] = [*judged, *median_curves(judged, kinds, rival or []), *others]
    rules = rules_of(tier, kinds, problems, seeds, others)
    if scoreboard is not None:
        check_scoreboard(scoreboard, rules, judged)
    results = Results(out / "results")
    with progress_bar("{task.completed}/{task.total} trainings  {task.description}") as bars:
        bar = bars.add_task("", total=None)

        def begin(total: int) -> None:
            bars.update(bar, total=total)

        def advance(contender: Contender, count: int) -> None:
            bars.update(bar, advance=count, description=contender.name)

        try:
            play_missing(results, contenders, problems, seeds, begin, advance)
        except KeyboardInterrupt:
            bars.stop()
            console.print("interrupted; the same command goes on")
            raise typer.Exit(INTERRUPTED) from None
    judgement = compare(scores_of(results, contenders, problems, seeds), {one.name for one in judged}, problems)
    about = [_about(tier, kinds, problems, seeds), caution(len(problems), "task", " to judge on")]
    _show(judgement, " ".join(filter(None, about)), out)
    if scoreboard is not None:
        add_rows(scoreboard, rules, rows_of(judgement, judged, others), judged)
        console.print(f"written: {scoreboard}")


def _problems(family: str, tier: str, tasks: int, kinds: list[str], cifar: str) -> list[Problem]:
    from qan_agents.controllers.controller import FAMILY
    from qan_agents.judging.outer_tier import outer_problems
    from qan_agents.judging.problems import PROBLEMS

    if tier == "family":
        return PROBLEMS[family](tasks, kinds)
    if family != FAMILY:
        raise ValueError(f"--tier outer has problems for controllers for {FAMILY}, and this one is for {family}")
    problems, obstacle = outer_problems(cifar)
    if obstacle is not None:
        console.print(obstacle)
    return problems


def _about(tier: str, kinds: list[str], problems: list[Problem], seeds: int) -> str:
    version = problems[0].tasks[0].VERSION
    noun, which = (
        ("held-out task", f"of the family ({', '.join(kinds)})") if tier == "family" else ("task", "unlike the family")
    )
    return (
        f"{counted(len(problems), noun)} {which}, version {version}; {counted(seeds, 'training')} of each contender on "
        "each, from the same seeds. "
        "The controllers have had no training on them. How: docs/judging.md."
    )


def _show(judgement: Judgement, about: str, out: Path) -> None:
    """Print the comparisons, and write the report."""
    from qan_agents.judging.report import report

    console.print(about)
    for one in judgement.judged:
        _print_rivals(judgement, one)
    for path in report(judgement, about, out):
        console.print(f"written: {path}")


def _print_rivals(judgement: Judgement, one: Scores) -> None:
    from qan_agents.judging.report import RIVALS_HEAD, rivals_table

    console.print(f"{one.title}: mean ln(test loss) {one.log_loss.mean():.3f}; minus that of its rivals:")
    table = table_of(*RIVALS_HEAD, right=RIVALS_HEAD[1:])
    for row in rivals_table(judgement, one).rows:
        table.add_row(*row)
    print_wrapped(table)
