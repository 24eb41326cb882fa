"""Pictures, pages and videos of runs whose games control something else, by actions of several numbers."""

import html
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from helpers import made_npz
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from typer.testing import CliRunner

from qan_agents.agents import Agent, AgentSpec, Progress, training_of
from qan_agents.cli.app import app
from qan_agents.experiments import plots, run_page
from qan_agents.experiments.agent import AGENTS
from qan_agents.experiments.evaluation import evaluate, scores_by_policy
from qan_agents.experiments.played_task import PlayedTask
from qan_agents.experiments.plots import action_ticks, plain, plot_run, save
from qan_agents.experiments.run_folder import Run, RunConfig, read_rows
from qan_agents.experiments.run_page import write_page
from qan_agents.experiments.train import start_run, train
from qan_agents.experiments.verdict import Verdict, verdict_of
from qan_agents.experiments.watch import watch_agent
from qan_agents.policies.fixed import Policy, RandomPolicy
from qan_agents.policies.rollout import Episode, EpisodeRecorder, play_episode, recorded_names
from qan_gym.config import TaskConfig
from qan_gym.core.run_state import RunState
from qan_gym.games import GAMES, Game
from qan_gym.utils.arrays import Array

LR = "QanLR-MNIST5k-v1"


class MomentumAndRate(Game):
    """Two numbers, for the learning rate and the momentum: a Box, or 3 x 3 choices."""

    controlled = "learning rate and momentum"
    hyperparameters = ("learning_rate", "momentum")
    baselines = ("constant", "random")
    curve = "momentum"
    curve_is_logarithmic = False
    without_acting = "learning rate and momentum stay as they are"

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.space = space

    def action_space(self, config: TaskConfig, n_classes: int) -> spaces.Space[Any]:
        return self.space

    def no_op(self, config: TaskConfig) -> Any:
        return np.zeros(2, np.float32) if isinstance(self.space, spaces.Box) else np.ones(2, np.int64)

    def curve_limits(self, config: TaskConfig) -> tuple[float, float]:
        return 0.0, 1.0

    def apply(self, run: RunState, actions: Array, config: TaskConfig) -> None:
        change = actions if isinstance(self.space, spaces.Box) else actions - 1.0  # (N, 2)
        change = run.xp.astype(change, run.xp.float64).clip(-1, 1)
        run.chosen_learning_rate[:] = (run.chosen_learning_rate * 2.0 ** change[:, 0]).clip(0.01, 0.5)
        run.momentum[:] = (run.momentum + 0.3 * change[:, 1]).clip(0, 0.9)


SPACES = {"box": spaces.Box(-1, 1, (2,), np.float32), "multi-discrete": spaces.MultiDiscrete([3, 3])}


class RandomAgent(Agent):
    """Random actions of any space, in one environment; learns nothing and values no action."""

    model_suffix = ".json"

    def __init__(self, spec: AgentSpec) -> None:
        self.env = EpisodeRecorder(gym.make(spec.env, **spec.env_kwargs))
        self.training = training_of(self.env)
        self.settings: dict[str, Any] = {}
        self.done = 0

    @property
    def steps(self) -> int:
        return self.done

    def play_round(
        self, seeds: Sequence[int], exploration: float | None, show: Callable[[Progress], None]
    ) -> list[Episode]:
        episode = play_episode(self.env, self.policy(), seeds[0])
        self.done += len(episode.steps)
        return [episode]

    def policy(self) -> Policy:
        return RandomPolicy()

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.done))

    def load(self, path: Path) -> None:
        self.done = json.loads(path.read_text())

    def close(self) -> None:
        self.env.close()


@pytest.fixture(scope="module", params=[pytest.param("box", marks=pytest.mark.slow), "multi-discrete"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trained and evaluated run of such a game, of 5 actions an episode."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GAMES, "momentum-and-rate", MomentumAndRate(SPACES[request.param]))
        patch.setitem(AGENTS, "random-agent", RandomAgent)
        data = made_npz(folder / "made.npz", n_train=113, n_test=10)
        task = {"dataset": data, "game": "momentum-and-rate", "batch_size": 10, "epochs": 2, "batches_per_action": 4}
        settings = {**task, "meta_momentum": None, "reference": None}
        begun = start_run(
            folder / "run", RunConfig(LR, settings, "random-agent", "default", 2, 0, evaluation_seeds=(0,))
        )
        train(begun, lambda progress: None, lambda number, episode: None)
        evaluate(begun, lambda name, seed: None)
        yield begun


def test_steps_have_a_column_for_every_number_and_hyperparameter(run: Run) -> None:
    """Beside the columns of every game, which keep their names."""
    for name, before in (("steps.csv.gz", ["episode"]), ("evaluation.csv.gz", ["policy", "seed"])):
        rows = read_rows(run.folder / name)
        assert list(rows[0]) == [
            *before,
            *("step", "batch", "epoch", "action", "action_1", "learning_rate", "momentum"),
            *("loss", "smoothed_loss", "validation_loss", "validation_accuracy", "reward"),
        ]
        assert len({row["momentum"] for row in rows}) > 1
    constant = [row for row in rows if row["policy"] == "constant"]
    assert {(row["learning_rate"], row["momentum"]) for row in constant} == {("0.05", "0.0")}


def test_the_same_columns_as_before_in_the_games_that_control_nothing_else() -> None:
    columns = ("batch", "epoch", "learning_rate", "loss", "smoothed_loss", "validation_loss", "validation_accuracy")
    assert recorded_names({}) == recorded_names(GAMES["learning-rate"].hyperparameters) == columns
    assert recorded_names(GAMES["minibatch"].hyperparameters) == columns


def test_the_agent_is_compared_with_the_baselines_of_the_game(run: Run) -> None:
    scores = scores_by_policy(run)
    assert [one.policy for one in scores] == ["random-agent", "constant", "random"]
    assert verdict_of(run).table()[0][-1] == "better than constant on"
    assert read_rows(run.folder / "evaluation.csv")[1]["steps_to_baseline"]


def test_all_but_values_is_drawn(run: Run) -> None:
    """An agent that does not value actions has no picture of values, neither in the folder nor on the page."""
    pictures = [path.name for path in plot_run(run)]
    assert sorted(pictures) == ["accuracy.png", "actions.png", "episode.png"]
    page = write_page(run)[0].read_text()
    assert page.count('src="data:image/png;base64,') == 5
    assert "max_q" not in page
    assert "after the action learning rate and momentum stay as they are" in page
    assert all((run.folder / name).stat().st_size > 10_000 for name in (*pictures, "regret.png", "filters.png"))


@pytest.mark.parametrize(
    ("losses", "epochs", "measured"),
    [
        (["2.3", "2.3", "2.3", "0.5"], [0, 1, 2, 2], [40]),  # a family: at the reset, and at the end
        (["2.3", "0.9", "0.9", "0.5"], [0, 1, 1, 2], [20, 40]),
        (["2.3", "0.9", "0.7", "0.5"], [0, 0, 0, 0], [20, 30, 40]),
        (["2.3"], [0], [10]),
        (["nan", "nan"], [0, 0], [20]),
    ],
)
def test_only_measured_validation_losses_are_drawn(losses: list[str], epochs: list[int], measured: list[int]) -> None:
    """What was measured before is in every row until it is measured again."""
    axes = unseen_episode(losses, epochs)
    for panel, label in zip(axes[:2], ("validation loss (nats)", "validation accuracy (%)"), strict=True):
        assert panel.get_ylabel() == label
        (line,) = [one for one in panel.get_lines() if one.get_label() == "constant"]
        assert line.get_xdata().tolist() == measured


def unseen_episode(losses: list[str], epochs: list[int]) -> Sequence[Axes]:
    """The panels of the picture of an unseen episode of 10 mini-batches an action."""
    shared = {"policy": "constant", "seed": "0", "smoothed_loss": "1", "learning_rate": "0.1"}
    rows = [
        {**shared, "batch": f"{10 * number + 10}", "epoch": f"{epoch}", "validation_loss": loss}
        | {"validation_accuracy": loss}
        for number, (loss, epoch) in enumerate(zip(losses, epochs, strict=True))
    ]
    task = PlayedTask(TaskConfig(), GAMES["learning-rate"], ["raise", "lower", "keep"])
    return plots._episode_figure("title", rows, task).axes


@pytest.mark.parametrize("episodes", [1, 2, 30])
def test_episodes_are_counted_in_whole_numbers(episodes: int) -> None:
    scores = {"validation_accuracy": "0.5", "test_accuracy": "0.5", "learned": "1"}
    rows = [{**scores, "episode": str(number)} for number in range(episodes)]
    figure = plots._accuracy_figure("title", rows, [], "constant")
    figure.canvas.draw()
    ticks = figure.axes[0].get_xticks()
    assert len(ticks) > 0
    assert (ticks == np.round(ticks)).all()


def test_every_picture_says_what_it_is_of(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []

    def titled(figure: Figure, path: Path, **options: Any) -> Path:
        titles.append("\n".join([figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]))
        return save(figure, path, **options)

    for module in (run_page, plots):
        monkeypatch.setattr(module, "save", titled)
    write_page(run)
    assert len(titles) == 5
    assert all(title.startswith(run.config().title) or f"\n{run.config().title}" in title for title in titles), titles


def test_an_agent_without_values_is_filmed(run: Run, tmp_path: Path) -> None:
    from imageio_ffmpeg import count_frames_and_secs

    watch_agent(run, 3, tmp_path / "film.mp4")
    assert count_frames_and_secs(str(tmp_path / "film.mp4"))[0] == 1 + 5


def test_an_unknown_game_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(GAMES, "momentum-and-rate")
    with pytest.raises(ValueError, match="unknown game 'momentum-and-rate'"):
        PlayedTask.of(run)


def test_of_many_actions_some_are_labelled() -> None:
    assert action_ticks(["raise", "lower", "keep"]) == ([0, 1, 2], ["raise", "lower", "keep"])
    ticks, labels = action_ticks([str(number) for number in range(100)])
    assert ticks == list(range(0, 100, 10))
    assert labels[3] == "30"


@pytest.mark.slow
def test_the_page_of_a_family_has_no_settings_that_its_tasks_draw(tmp_path: Path) -> None:
    for command in ("train QanMinibatch-LongTail-v0 --episodes 1 --out", "plot --html"):
        done = CliRunner().invoke(app, [*command.split(), str(tmp_path / "run")])
        assert done.exit_code == 0, done.output
    page = (tmp_path / "run" / "run.html").read_text()
    assert "<td>loss_scale</td>" not in page
    assert "<td>label_noise</td>" not in page
    assert "<td>class_weights</td>" in page
    assert "meta-momentum" not in page.split("Episode by episode")[0]


HOSTILE = "<script>alert(1)</script> | $x^$ _y_"


def test_what_others_wrote_is_text_on_the_page_of_a_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of policies, settings and titles, in the page and in its pictures."""
    scores = [replace(one, policy=f"{one.policy}{HOSTILE}") for one in scores_by_policy(run)]
    monkeypatch.setattr(run_page, "verdict_of", lambda run: Verdict(scores, f"constant{HOSTILE}", None))
    monkeypatch.setattr(RunConfig, "title", HOSTILE)
    page = write_page(run)[0].read_text()
    assert "<script" not in page
    assert page.count(html.escape(HOSTILE)) >= 2 + 3
    assert page.index("Content-Security-Policy") < page.index("<title>")
    assert f"<td>constant{html.escape(HOSTILE)}</td>" in page


@pytest.mark.parametrize("text", ["$x^$", "_hidden", "a\nb", "\x00", "x" * 500, "", "\\$a$ $"])
def test_pictures_show_text_as_it_is(text: str, tmp_path: Path) -> None:
    figure = Figure()
    axes = figure.add_subplot(title=plain(text))
    axes.plot([0, 1], label=plain(text))
    legend = axes.legend()
    figure.savefig(tmp_path / "p.png")  # matplotlib reads formulas when it draws
    (shown,) = legend.get_texts()
    assert shown.get_text() == plain(text)
    assert len(plain(text)) <= 85


def test_dollar_signs_are_no_formula() -> None:
    assert plain("costs $1 and $2") == r"costs \$1 and \$2"
    assert plain("_x") == " _x"


def test_a_picture_is_legible_on_any_background(tmp_path):
    """Transparent, and without black: title, ticks, spines, legend, texts of the figure and of the axes."""
    figure = Figure(figsize=(4, 3))
    axes = figure.add_subplot(title="title", xlabel="x", ylabel="y", yscale="log")
    axes.plot([1, 2], [1, 1000], color="#D55E00", label="a line")
    axes.twinx().set_ylabel("right")
    axes.text(1.5, 30, "text")
    axes.legend()
    figure.suptitle("over all")
    image = imread(save(figure, tmp_path / "figure.png"))  # (H, W, 4) in [0, 1]
    drawn = image[image[..., 3] > 0.9][:, :3]
    assert (image[..., 3] == 0).mean() > 0.5
    assert len(drawn) > 100
    assert drawn.max(axis=1).min() > 0.4
