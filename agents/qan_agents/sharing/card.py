"""Model cards, made from what an agent or a controller knows of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from qan_agents.controllers.controller import Controller
from qan_agents.controllers.description import facts, flat, what_it_is
from qan_agents.experiments.page import Block, Heading, Paragraph, Table, markdown_page
from qan_agents.experiments.run_folder import Run
from qan_agents.experiments.verdict import verdict_of
from qan_agents.judging.scoreboard import Row, Rules, read_scoreboard
from qan_gym.utils.counts import counted

TAGS = ["reinforcement-learning", "qan-gym", "learning-rate"]


def controller_card(controller: Controller, digest: str, repository: str, judgement: Path | None) -> str:
    """The card of a controller.

    Args:
        controller: it.
        digest: SHA-256 of its file.
        repository: where it is pushed to.
        judgement: a scoreboard that has it, or None.

    Raises:
        ValueError: the scoreboard is damaged, or has no row of this file.
        FileNotFoundError: there is no such scoreboard.
    """
    settings = controller.settings
    blocks: list[Block] = [
        Paragraph(f"{what_it_is(settings)}. It needs NumPy alone. Get it with: qan pull {repository}"),
        Heading("What it sees and does"),
        _facts({**facts(controller), "SHA-256 of the file": digest}),
        Heading("How it was made"),
        _facts(flat(controller.provenance)),
        Heading("How good it is"),
    ]
    if judgement is None:
        blocks.append(Paragraph("It was not judged for this card; docs/judging.md says how controllers are compared."))
    else:
        blocks += _judged(judgement, digest)
    title = "Learned shares of the classes" if settings.factor is None else "A learned learning rate"
    return _card(f"{title}, {', '.join(settings.optimizers)}", blocks)


def _judged(path: Path, digest: str) -> list[Block]:
    board = read_scoreboard(path)
    rows = [row for row in board.rows if digest in row.files]
    if not rows:
        raise ValueError(f"{path} has no row of this controller: qan judge CONTROLLER --scoreboard {path} adds it")
    return [block for row in rows for block in (Paragraph(_rules(board.rules, row)), *_differences(row))]


def _rules(rules: Rules, row: Row) -> str:
    replicates = len(row.files)
    among = "this controller alone" if replicates == 1 else f"{replicates} replicates, of which this is one"
    problems, trainings = counted(rules.problems, "problem"), counted(rules.seeds, "training")
    return (
        f"Judged by qan judge ({rules.tier}, version {rules.tasks_version} of the tasks) on {problems} "
        f"with {', '.join(rules.networks)}, {trainings} on each, with no training on them: {among}. "
        f"With {row.optimizer}, mean ln(test loss) {row.log_test_loss:.3f}, test accuracy {row.test_accuracy:.1%}, "
        f"{row.diverged:.1%} diverged."
    )


def _differences(row: Row) -> list[Block]:
    rows = [
        (name, f"{one.value:+.3f} ({one.low:+.3f} to {one.high:+.3f})")
        for name, one in sorted(row.differences.items(), key=lambda item: item[1].value)
    ]
    about = Paragraph("Its mean ln(test loss) minus that of each rival, with 95 % intervals; below 0 it is better:")
    return [about, Table(("rival", "difference"), rows)]


def run_card(run: Run, repository: str) -> str:
    """The card of the agent of a run.

    Raises:
        ValueError: a file of the run is damaged.
    """
    config, settings = run.config(), run.settings()
    done = run.progress()
    blocks: list[Block] = [
        Paragraph(
            f"The agent {config.agent} for {config.env}, where training a neural network is the game, "
            f"after {counted(done.episodes, 'training')}. Get it, and play it on unseen seeds, with: "
            f"qan pull {repository} --out agent, qan evaluate agent"
        ),
        Heading("How it was made"),
        _facts(
            {
                "agent": f"{config.agent} ({config.preset})",
                "environment": config.env,
                **{f"environment: {name}": value for name, value in flat(config.env_kwargs).items()},
                "trainings, actions": f"{done.episodes}, {done.steps:,}",
                "seed": config.seed,
                "data": settings.dataset_fingerprint,
                **{f"version of {name}": value for name, value in settings.versions.items()},
                **{f"hyperparameter {name}": value for name, value in settings.hyperparameters.items()},
            }
        ),
        Heading("How good it is"),
    ]
    if run.evaluated:
        verdict = verdict_of(run)
        head, rows = verdict.table()
        blocks += [Paragraph(f"{verdict.title}."), Table(head, rows), Paragraph(verdict.sentence())]
    else:
        blocks.append(Paragraph("It was not evaluated; qan evaluate plays it on unseen seeds beside fixed policies."))
    return _card(f"{config.agent} for {config.env}", blocks)


def _card(title: str, blocks: list[Block]) -> str:
    about = ModelCardData(library_name="qan-gym", tags=TAGS, pipeline_tag="reinforcement-learning")
    return f"---\n{about.to_yaml()}\n---\n\n{markdown_page(title, blocks)}"


def _facts(values: dict[str, Any]) -> Table:
    rows = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in values.items()]
    return Table(("what", "value"), rows)
