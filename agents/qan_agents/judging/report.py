"""The report of a judgement: tables and pictures, as Markdown and as one self-contained HTML page."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from qan_agents.bench.statistics import Estimate, performance_profiles, profiles_title
from qan_agents.experiments.page import (
    Block,
    Heading,
    Paragraph,
    Picture,
    Table,
    html_page,
    markdown_page,
    write_text,
)
from qan_agents.experiments.plots import LEGIBLE, legend_below, plain, save
from qan_agents.judging.statistics import Difference, Judgement, Scores
from qan_gym.utils.files import require_writable

TITLE = "Controllers on tasks that they have never seen"
CURVES = 8  # in a picture; more cannot be told apart
LARGEST = 1.0  # nats behind the best, the right end of a performance profile

LEGEND = (
    "Differences of ln(test loss), the controller's minus the rival's: below 0 is in the controller's favour, -0.10 is "
    "a test loss 10 % lower. In brackets: 95 % intervals; problems are drawn, seeds within each, and the controller's "
    "replicates (of a single replicate they do not say how another meta-training would differ). Median: over the "
    "problems. Won: share of the problems. Reached: the share of the budget after which the controller's running mean "
    "of the training loss is down to where the rival's ends, median; never: not in half of the trainings; other "
    "batches: the two train on different mini-batches, whose losses do not compare. Worst: the "
    "problem on which the controller is farthest behind. Diverged: the controller's trainings, and the rival's."
)


def report(judgement: Judgement, about: str, out: Path) -> list[Path]:
    """Write `report.md`, `report.html` and the pictures into a folder.

    Args:
        judgement: what was found.
        about: by which rules.
        out: the folder.

    Raises:
        ValueError: the folder cannot be written to.
    """
    require_writable(out)
    blocks: list[Block] = [Paragraph(about), Heading("All contenders"), everyone_table(judgement)]
    blocks.append(Picture(save(profiles_picture(judgement), out / "profiles.png", dpi=110), "performance profiles"))
    for number, one in enumerate(judgement.judged):
        picture = save(differences_picture(judgement, one), out / f"differences-{number}.png", dpi=110)
        blocks += [
            Heading(one.title),
            rivals_table(judgement, one),
            Paragraph(LEGEND),
            Picture(picture, f"{one.title} minus its rivals"),
            Heading(f"{one.title}: parts of the problems"),
            parts_table(judgement, one),
            Paragraph(
                "Mean differences of ln(test loss) on the problems of each kind of network and of each third of the "
                "budgets."
            ),
        ]
    write_text(out / "report.md", markdown_page(TITLE, blocks))
    write_text(out / "report.html", html_page(TITLE, blocks))
    pictures = [block.path for block in blocks if isinstance(block, Picture)]
    return [out / "report.md", out / "report.html", *pictures]


# --- tables ---------------------------------------------------------------------------------------------------------


def everyone_table(judgement: Judgement) -> Table:
    """Everyone, from the lowest mean of ln(test loss) to the highest."""
    head = ("contender", "optimizer", "replicates", "ln test loss", "accuracy", "worst problem", "diverged")
    rows = []
    for one in judgement.everyone:
        by_problem = one.log_loss.mean(axis=(0, 2))
        worst = int(by_problem.argmax())
        rows.append(
            (
                one.name,
                one.optimizer,
                str(len(one.log_loss)),
                f"{one.log_loss.mean():.3f}",
                f"{one.accuracy.mean():.1%}",
                f"{by_problem[worst]:+.2f} ({judgement.problems[worst].name})",
                f"{one.diverged.mean():.1%}",
            )
        )
    return Table(head, rows)


RIVALS_HEAD = ("rival", "mean", "median", "won", "reached", "accuracy", "worst", "diverged")


def rivals_table(judgement: Judgement, one: Scores) -> Table:
    """A controller against each rival, on all problems."""
    rows = []
    for other in judgement.opponents(one):
        found = judgement.differences[one.title, other.title, "all"]
        rows.append((other.title, *cells(judgement, found), f"{one.diverged.mean():.1%}, {other.diverged.mean():.1%}"))
    return Table(RIVALS_HEAD, rows)


def cells(judgement: Judgement, found: Difference) -> tuple[str, ...]:
    """Of a difference."""
    won = found.won
    return (
        with_interval(found.mean),
        with_interval(found.median),
        f"{won.value:.0%} ({won.low:.0%} to {won.high:.0%})",
        reached(judgement, found),
        f"{100 * found.accuracy:+.1f} points",
        f"{found.worst:+.2f} ({judgement.problems[found.worst_place].name})",
    )


def reached(judgement: Judgement, found: Difference) -> str:
    """See `Difference.reached`."""
    if not judgement.problems[0].tasks[0].SAME_BATCHES:
        return "other batches"
    return "never" if math.isinf(found.reached) else f"{found.reached:.0%}"


def parts_table(judgement: Judgement, one: Scores) -> Table:
    """The mean differences of a controller on the parts of the problems."""
    names = list(judgement.parts)
    head = ("rival", *(f"{name} ({len(judgement.parts[name])})" for name in names))
    rows = [
        (
            other.title,
            *(with_interval(judgement.differences[one.title, other.title, part].mean) for part in names),
        )
        for other in judgement.opponents(one)
    ]
    return Table(head, rows)


def with_interval(estimate: Estimate) -> str:
    """A number and its interval."""
    return f"{estimate.value:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f})"


# --- pictures -------------------------------------------------------------------------------------------------------


def differences_picture(judgement: Judgement, one: Scores) -> Figure:
    """The mean differences of a controller to its rivals, with intervals."""
    others = judgement.opponents(one)[::-1]
    figure = Figure(figsize=(8, 1.5 + 0.28 * max(len(others), 1)), layout="constrained")
    axes = figure.add_subplot(title=f"ln(test loss) of {plain(one.title)} minus that of its rivals, 95 %")
    for place, other in enumerate(others):
        found = judgement.differences[one.title, other.title, "all"].mean
        beside = [[max(found.value - found.low, 0)], [max(found.high - found.value, 0)]]
        axes.errorbar(found.value, place, xerr=beside, fmt="o", color="#0072B2", capsize=3)
    axes.set_yticks(range(len(others)), [plain(other.title) for other in others])
    axes.axvline(0, color=LEGIBLE, linewidth=1)
    axes.set_xlabel("left: in the controller's favour")
    axes.grid(alpha=0.3)
    return figure


def profiles_picture(judgement: Judgement) -> Figure:
    """Which share of the trainings is at most so far behind the best contender of its problem."""
    everyone = judgement.everyone
    some = [*judgement.judged, *(one for one in everyone if one not in judgement.judged)][:CURVES]
    best = np.min([one.log_loss.mean(axis=(0, 2)) for one in everyone], axis=0)  # (P,)
    behind = np.linspace(0, LARGEST, 51)
    scores = {one.title: (best[None, :, None] - one.log_loss).swapaxes(1, 2).reshape(-1, len(best)) for one in some}
    found, bands = performance_profiles(scores, -behind[::-1])
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(title=profiles_title(scores))
    for number, name in enumerate(scores):
        axes.plot(behind, found[name][::-1], color=f"C{number}", label=plain(name))
        axes.fill_between(behind, *bands[name][:, ::-1], color=f"C{number}", alpha=0.12)
    axes.set_xlabel("t: ln(test loss) behind the best contender on the same problem")
    axes.set_ylabel("share of the trainings at most t behind")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    legend_below(figure, axes)
    return figure
