"""The report of a bench: tables and pictures, as Markdown and as one self-contained HTML page."""

import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from qan_agents import budgets
from qan_agents.bench import statistics
from qan_agents.bench.controllers import Preparation
from qan_agents.bench.preparation import controllers
from qan_agents.bench.results import Row, read_table
from qan_agents.bench.statistics import BASELINE, TARGET, ControllerScores, Estimate
from qan_agents.experiments.page import (
    Block,
    Heading,
    Items,
    Paragraph,
    Picture,
    Table,
    html_page,
    markdown_page,
    write_text,
)
from qan_agents.experiments.plots import LEGIBLE, legend_below, plain, save
from qan_gym.utils.counts import counted
from qan_gym.utils.files import require_writable

TITLE = "Results of the bench"
LINE_STYLES = ("-", "--", ":", "-.")
SCHEDULES = ("step", "linear", "cosine", "one-cycle", "one-cycle-wide")  # the tuned ones that agents are compared with
LINEAR_RANGE = 0.1  # nats: a picture of larger differences has a logarithmic axis
CURVES = 8  # in a picture, the best by test loss; more cannot be told apart


def report(path: Path, out: Path) -> list[Path]:
    """Write `report.md`, `report.html` and the pictures of a results file into a folder; returns their paths.

    Raises:
        ValueError: see `page_of`.
    """
    return write_page(page_of(path, out), out)


def page_of(path: Path, out: Path) -> list[Block]:
    """What the report of a results file says, and its pictures, which are drawn into a folder.

    Raises:
        ValueError: the results are missing, damaged, or hold nothing finished; one label stands for two controllers; or
            the folder cannot be written.
    """
    require_writable(out)
    rows = read_table(path).to_pylist()
    done = [row for row in rows if row["status"] == "done"]
    if not done:
        raise ValueError(f"{path}: no cell is finished yet: run qan bench")
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in done:
        groups.setdefault((row["environment_identity"], row["prepared_on_identity"]), []).append(row)
    titles = _titles(groups)
    blocks: list[Block] = [_preface(done)]
    for number, (where, some) in enumerate(groups.items()):
        same = [row for row in done if row["environment_identity"] == where[0]]
        blocks += _section(titles[where], some, same, out / f"{number}-")
    return blocks + _failures([row for row in rows if row["status"] == "failed"])


def write_page(blocks: list[Block], out: Path) -> list[Path]:
    """Write a page as Markdown and as HTML into the folder of its pictures; returns the paths of all three."""
    write_text(out / "report.md", markdown_page(TITLE, blocks))
    write_text(out / "report.html", html_page(TITLE, blocks))
    return [out / "report.md", out / "report.html", *(block.path for block in blocks if isinstance(block, Picture))]


def _preface(rows: list[Row]) -> Paragraph:
    versions: dict[str, dict[str, None]] = {}  # by package, in order
    for one in sorted({row["versions"] for row in rows}):
        for name, value in json.loads(one).items():
            if value:
                versions.setdefault(name, {})[value] = None
    listed = ", ".join(f"{name} {' and '.join(found)}" for name, found in versions.items())
    return Paragraph(
        "Every controller was prepared on so many trainings (in brackets) of tuning seeds, then judged on the same "
        "unseen seeds: same initial weights, same order of the data, same meta-momentum. The test set was read once, "
        f"at the end of those. How: docs/protocol.md. Versions: {listed}."
    )


def _titles(groups: dict[tuple[str, str], list[Row]]) -> dict[tuple[str, str], str]:
    """A heading for each pair of identities; those that share one by their names say which data they are of."""
    titles = {}
    for where, (first, *_) in groups.items():
        titles[where] = first["environment"] + _settings(first["environment_kwargs"])
        if where[0] != where[1]:
            titles[where] += f", prepared on {first['prepared_on']}{_settings(first['prepared_on_kwargs'])}"
    names = list(titles.values())
    return {
        where: title if names.count(title) == 1 else f"{title}, data {groups[where][0]['data_fingerprint'][:12]}"
        for where, title in titles.items()
    }


def _settings(kwargs: str) -> str:
    settings = json.loads(kwargs)
    return f" ({', '.join(f'{name}={value}' for name, value in settings.items())})" if settings else ""


def _section(title: str, rows: list[Row], same: list[Row], pictures: Path) -> list[Block]:
    """What was found on one environment.

    Args:
        title: of the environment.
        rows: of its finished cells.
        same: of the finished cells on the same environment, wherever they were prepared.
        pictures: what the paths of its pictures begin with.
    """
    # The baseline is not prepared: it is the same whatever environment the others were prepared on.
    baselines = [row for row in same if row["label"] == BASELINE and row["runs"] == 0]
    seeds = statistics.common_seeds([*rows, *baselines])
    if not seeds:
        raise ValueError(f"{title}: there is no evaluation seed that all cells have")
    everyone = sorted(statistics.controller_scores(rows, seeds), key=lambda one: one.test_loss.mean())
    found = statistics.controller_scores(baselines, seeds)
    for label in (BASELINE, "shuffled"):
        found += [one for one in everyone if one.label == label]
    baseline = found[0] if found else everyone[-1]
    targets = sorted((one for one in everyone if one.label == TARGET), key=lambda one: one.runs) or [baseline]
    figures = {
        "scores": _scores_picture(everyone, baseline),
        "curves": _curves_picture(everyone),
        "profiles": _profiles_picture(everyone, baseline),
    }
    return [
        Heading(title),
        *_missing([*rows, *baselines], seeds),
        *_cautions({row["runs"] for row in rows if row["runs"] > 0}, len(seeds)),
        score_table(everyone, baseline, targets),
        *_no_baseline(baseline),
        _legend(baseline, targets),
        *comparison_table(everyone, baseline),
        *(
            Picture(save(figure, pictures.with_name(f"{pictures.name}{name}.png"), dpi=110), f"{title}: {name}")
            for name, figure in figures.items()
        ),
    ]


def _missing(rows: list[Row], seeds: list[int]) -> list[Block]:
    """Which cells keep the comparison from more evaluation seeds; nothing where all have the same."""
    every = {row["evaluation_seed"] for row in rows}
    if every == set(seeds):
        return []
    lines = [
        f"{label} ({counted(runs, 'run')}, seed {seed}): {len(there)} of {counted(len(every), 'evaluation seed')}"
        for (label, runs, seed), there in statistics.seeds_of_cells(rows).items()
        if there != every
    ]
    return [
        Paragraph(
            f"Compared on {counted(len(seeds), 'evaluation seed')}, which all cells have. Some cells have more; qan "
            f"bench, with the grid that asks for them, computes what is missing of these {len(lines)}:"
        ),
        Items(lines),
    ]


def _cautions(prepared: Collection[int], evaluation_seeds: int) -> list[Block]:
    """See `budgets.cautions`; nothing where all are large enough."""
    few = budgets.cautions(prepared, evaluation_seeds)
    return [Items(few)] if few else []


def _no_baseline(stand_in: ControllerScores) -> list[Block]:
    """What everyone is compared with, where that is not the usual baseline."""
    if stand_in.label in (BASELINE, "shuffled"):
        return []
    return [
        Items(
            [
                f"The baseline is {stand_in.name}, for want of another: results of the controller {BASELINE} in the "
                "same file take its place."
            ]
        )
    ]


# --- the table ------------------------------------------------------------------------------------------------------

HEAD = (
    *("controller (budget)", "consumed: trainings, mini-batches", "preparations x seeds"),
    *("test loss", "accuracy", "minus baseline", "IQM of the score"),
    *("P(better than baseline)", "rank", "steps to target", "mean ln validation loss", "diverged"),
)


def score_table(
    everyone: Sequence[ControllerScores], baseline: ControllerScores, targets: Sequence[ControllerScores]
) -> Table:
    """All controllers in a table, from the lowest test loss to the highest."""
    scores = {one.name: statistics.relative_scores(one, baseline)[:, None] for one in everyone}
    means, ranks = statistics.interquartile_means(scores), statistics.mean_ranks(everyone)
    against = statistics.relative_scores(baseline, baseline)[:, None]
    rows = []
    for one in everyone:
        itself = one.name == baseline.name
        target = next((other for other in targets if other.runs == one.runs), targets[0])
        share = float(np.median(statistics.share_until(one, target)))
        rows.append(
            (
                one.name,
                f"{one.consumed_runs:.0f}, {one.consumed_batches:,.0f}",
                f"{len(one.seeds)} x {len(one.evaluation_seeds)}",
                f"{one.test_loss.mean():.4f}",
                f"{one.test_accuracy.mean():.2%}",
                "" if itself else _against(one, baseline),
                _interval(means[one.name], 3),
                "" if itself else _chance(statistics.probability_of_improvement(scores[one.name], against)),
                f"{ranks[one.name]:.1f}",
                "never" if math.isinf(share) else f"{share:.0%}",
                f"{statistics.mean_log_loss(one).mean():.3f}",
                f"{one.diverged.mean():.0%}",
            )
        )
    return Table(HEAD, rows)


def _interval(estimate: Estimate, digits: int) -> str:
    return f"{estimate.value:+.{digits}f} ({estimate.low:+.{digits}f} to {estimate.high:+.{digits}f})"


def _chance(estimate: Estimate) -> str:
    return f"{estimate.value:.0%} ({estimate.low:.0%} to {estimate.high:.0%})"


def _legend(baseline: ControllerScores, targets: Sequence[ControllerScores]) -> Paragraph:
    target = targets[0].name + ("" if len(targets) == 1 else f", or of {TARGET} prepared on as many trainings,")
    return Paragraph(
        f"Test loss and accuracy: means. Minus baseline: the difference in test loss to {baseline.name} on the same "
        "seeds; 95 % interval, preparations and evaluation seeds resampled (of a single preparation it does not say "
        "how another would differ). Score: ln(test loss of the baseline / test loss). IQM: its interquartile mean; "
        "95 %, stratified bootstrap (rliable), all trainings taken as independent. "
        "Rank: mean over the evaluation seeds. Steps to target: the share of the training until the validation loss "
        f"was down to where that of {target} ended, median. Mean ln validation loss: the area under that curve."
    )


def comparison_table(everyone: Sequence[ControllerScores], baseline: ControllerScores) -> list[Block]:
    """Every learned controller beside those that were tuned on as many training runs; empty where there are none.

    Learned is what was prepared and is not one of the tuned controllers: older results have other names.
    """
    head = (
        "learned controller",
        f"minus {baseline.name}",
        f"minus {TARGET}",
        "minus the best tuned schedule",
        "which is",
    )
    tuned = [name for name, kind in controllers().items() if kind.preparation == Preparation.TUNING]
    rows = []
    for one in everyone:
        rivals = [other for other in everyone if other.runs == one.runs]
        constants = [other for other in rivals if other.label == TARGET]
        schedules = [other for other in rivals if other.label in SCHEDULES]
        learned = one.runs > 0 and one.controller not in tuned
        if not learned or not (constants or schedules):
            continue
        opponents = ([baseline], constants, schedules[:1])  # everyone comes sorted by test loss
        cells = [_against(one, some[0]) if some else "" for some in opponents]
        rows.append((one.name, *cells, schedules[0].name if schedules else ""))
    if not rows:
        return []
    about = (
        f"Differences in test loss, as above. The best tuned schedule, of {', '.join(SCHEDULES)}, is the one with the "
        "lowest test loss on the evaluation seeds, which favours it."
    )
    return [Table(head, rows), Paragraph(about)]


def _against(one: ControllerScores, other: ControllerScores) -> str:
    return _interval(statistics.difference(one.test_loss, other.test_loss), 4)


def _failures(rows: list[Row]) -> list[Block]:
    if not rows:
        return []
    lines = [
        f"{row['environment']}, {row['label']} ({row['runs']}), seed {row['seed']}: {row['error']}" for row in rows
    ]
    return [Heading("Cells that failed"), Items(lines)]


# --- the pictures ---------------------------------------------------------------------------------------------------


def _scores_picture(everyone: Sequence[ControllerScores], baseline: ControllerScores) -> Figure:
    others = [one for one in everyone if one.name != baseline.name][::-1]
    figure = Figure(figsize=(8, 1.5 + 0.32 * max(len(others), 1)), layout="constrained")
    axes = figure.add_subplot(title=f"test loss minus that of {plain(baseline.name)}, 95 % intervals")
    largest = 0.0
    for place, one in enumerate(others):
        found = statistics.difference(one.test_loss, baseline.test_loss)
        beside = [[max(found.value - found.low, 0)], [max(found.high - found.value, 0)]]
        largest = max(largest, abs(found.low), abs(found.high))
        axes.errorbar(found.value, place, xerr=beside, fmt="o", color="#0072B2", capsize=3)
    axes.set_yticks(range(len(others)), [plain(one.name) for one in others])
    axes.axvline(0, color=LEGIBLE, linewidth=1)
    axes.set_xlabel("nats (left: better)")
    if largest > LINEAR_RANGE:
        axes.set_xscale("symlog", linthresh=LINEAR_RANGE)
        axes.set_xlabel(f"nats (left: better; linear within {LINEAR_RANGE}, logarithmic beyond)")
    axes.grid(alpha=0.3)
    return figure


def _curves_picture(everyone: Sequence[ControllerScores]) -> Figure:
    figure = Figure(figsize=(9, 7), layout="constrained")
    loss, rate = figure.subplots(2, 1, sharex=True)
    for number, one in enumerate(everyone[:CURVES]):
        look = {"color": f"C{number}", "linestyle": LINE_STYLES[number % len(LINE_STYLES)], "label": plain(one.name)}
        for axes, values in ((loss, one.validation_curve), (rate, one.rate_curve)):
            share = np.linspace(0, 1, values.shape[2])
            axes.plot(share, np.median(values.reshape(-1, values.shape[2]), axis=0), **look)
    which = f"the {CURVES} controllers of lowest test loss: " if len(everyone) > CURVES else ""
    loss.set(ylabel="validation loss (nats)", yscale="log", title=f"{which}medians over all trainings")
    rate.set(ylabel="learning rate", yscale="log", xlabel="share of the training")
    rate.xaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (loss, rate):
        axes.grid(alpha=0.3)
    legend_below(figure, loss)
    return figure


def _profiles_picture(everyone: Sequence[ControllerScores], baseline: ControllerScores) -> Figure:
    some = everyone[:CURVES]
    scores = {one.name: statistics.relative_scores(one, baseline)[:, None] for one in some}
    together = np.concatenate(list(scores.values()))
    low, high = np.percentile(together, [1, 99])
    taus = np.linspace(low, high, 61)
    found, intervals = statistics.performance_profiles(scores, taus)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(title=statistics.profiles_title(scores))
    for number, name in enumerate(scores):
        axes.plot(
            taus, found[name], color=f"C{number}", linestyle=LINE_STYLES[number % len(LINE_STYLES)], label=plain(name)
        )
        axes.fill_between(taus, *intervals[name], color=f"C{number}", alpha=0.12)
    axes.set_xlabel(f"score t: ln(test loss of {plain(baseline.name)} / test loss)")
    axes.set_ylabel("share of the trainings with a score above t")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    legend_below(figure, axes)
    return figure
