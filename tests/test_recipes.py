"""`qan reproduce`: the paper's experiments, made small."""

import csv
from pathlib import Path

import pytest
from helpers import made_npz
from typer.testing import CliRunner

from qan_agents.cli.app import app
from qan_agents.experiments.evaluation import evaluate
from qan_agents.experiments.reproduce import RECIPES, TEST_EXPLORATION, recipe_config
from qan_agents.experiments.run_folder import Run, RunConfig, read_rows
from qan_agents.experiments.train import start_run, train
from qan_gym.tasks import TASKS


@pytest.fixture(scope="module")
def npz(tmp_path_factory) -> str:
    """1,800 training images, 1,600 after validation; small ones."""
    return made_npz(tmp_path_factory.mktemp("data") / "made.npz", n_train=1800, n_test=20, shape=(12, 12))


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_at_full_scale_a_recipe_is_the_game_as_registered(recipe):
    baselines = ("uniform" if recipe == "mnist-minibatch" else "constant",)
    config = recipe_config(recipe, 1.0, 3, {"device": "cpu"})
    wanted = RunConfig(
        RECIPES[recipe], {"device": "cpu"}, "dqn-native", "paper", 20, 3, 1, TEST_EXPLORATION, (0, 1, 2), baselines
    )
    assert config == wanted
    assert config.env in TASKS


@pytest.mark.parametrize(
    ("recipe", "scale", "episodes", "shorter"),
    [
        ("mnist-lr", 0.5, 10, {"epochs": 10}),
        ("mnist-lr", 0.02, 2, {"epochs": 1, "train_size": 640}),  # 0.4 of an epoch
        ("mnist-lr", 0.001, 2, {"epochs": 1, "train_size": 100}),  # ten mini-batches of 10
        ("mnist-minibatch", 0.01, 2, {"epochs": 1, "train_size": 1280}),  # at least ten of 128
        ("cifar10-lr", 0.4, 8, {"epochs": 2}),
        ("cifar10-lr", 0.18, 4, {"epochs": 1, "train_size": 1440}),
    ],
)
def test_a_scaled_recipe_is_shorter_in_proportion(recipe, scale, episodes, shorter, npz):
    config = recipe_config(recipe, scale, 0, {"dataset": npz})
    assert config.episodes == episodes
    assert config.env_kwargs == {"dataset": npz, **shorter}
    assert len(config.evaluation_seeds) == max(1, round(3 * scale))


def test_odd_episodes_train_and_even_ones_are_played():
    config = RunConfig("x", {}, "dqn", "paper", 5, 0, test_exploration=0.05)
    assert [config.trains(episode) for episode in range(5)] == [True, False, True, False, True]
    assert config.training_episodes == 3
    together = RunConfig("x", {}, "dqn", "paper", 8, 0, num_envs=2, test_exploration=0.05)
    assert [together.trains(episode) for episode in range(8)] == [True, True, False, False] * 2
    assert RunConfig("x", {}, "dqn", "paper", 5, 0).training_episodes == 5


@pytest.fixture(scope="module")
def tiny_npz(tmp_path_factory) -> str:
    """225 training images, 200 after validation; small ones."""
    return made_npz(tmp_path_factory.mktemp("data") / "tiny.npz", n_train=225, n_test=10, shape=(12, 12))


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        pytest.param("mnist-lr", [], marks=pytest.mark.slow),
        ("mnist-minibatch", ["batch_size=20"]),
        # Its agent has 37 million weights, because its screens are large.
        pytest.param("cifar10-lr", ["network=resnet-8", "batch_size=4"], marks=pytest.mark.slow),
    ],
)
def test_a_recipe_from_beginning_to_end(recipe, settings, tiny_npz, tmp_path, monkeypatch):
    """Reference, training, test episodes, evaluation and pictures, by the command."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    given = [f"--set={setting}" for setting in (f"dataset={tiny_npz}", *settings)]
    result = CliRunner().invoke(app, ["reproduce", recipe, "--scale", "0.001", "--out", str(folder), *given])
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "cache" / "qan-gym" / "references").iterdir())) == 1
    for picture in ("accuracy.png", "max_q.png", "actions.png", "episode.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    trained, played = read_rows(folder / "episodes.csv")
    assert (trained["learned"], played["learned"]) == ("1", "0")
    assert float(played["epsilon"]) == TEST_EXPLORATION
    assert float(trained["mean_max_q"]) != float(played["mean_max_q"])
    assert [path.name for path in (folder / "replay").iterdir()] == ["000000.safetensors"], (
        "a played episode is learned"
    )
    with (folder / "evaluation.csv").open() as file:
        policies = [row["policy"] for row in csv.DictReader(file)]
    assert policies == ["dqn-native", "uniform" if recipe == "mnist-minibatch" else "constant"]
    before = (folder / "evaluation.csv").read_bytes()
    evaluate(Run(folder), lambda name, seed: None)
    assert (folder / "evaluation.csv").read_bytes() == before, "judged otherwise than the recipe says"


def test_a_run_with_played_episodes_resumes(tiny_npz, tmp_path):
    """Stopped after its second episode, which was only played, it ends like one that was not stopped."""
    short = {"dataset": tiny_npz, "epochs": 1, "batches_per_action": 2, "meta_momentum": None, "reference": None}
    config = RunConfig("QanLR-MNIST5k-v1", short, "dqn", "quick", 4, 0, test_exploration=0.5)

    def stop_after(count):
        def finished(number, _episode):
            if number + 1 == count:
                raise KeyboardInterrupt

        return finished

    tables = []
    for name in ("whole", "stopped"):
        run = start_run(tmp_path / name, config)
        if name == "stopped":
            with pytest.raises(KeyboardInterrupt):
                train(run, lambda _: None, stop_after(2))
        train(run, lambda _: None, lambda *_: None)
        rows = read_rows(run.folder / "episodes.csv")
        tables.append([{key: value for key, value in row.items() if key != "seconds"} for row in rows])
    assert len(tables[0]) == 4
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mnist"], "unknown recipe 'mnist'"),
        (["mnist-lr", "--scale", "0"], "scale must be above 0"),
        (["mnist-lr", "--scale", "-1"], "scale must be above 0"),
        (["mnist-lr", "--scale", "1.5"], "less than or equal to 1"),
        (["cifar10-lr", "--set", "network=vgg"], "unknown network 'vgg'"),
        (["cifar10-lr", "--set", "netwerk=nin"], "unexpected keyword argument 'netwerk'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(arguments, said, npz, tmp_path: Path):
    folder = tmp_path / "run"
    given = ["--set", f"dataset={npz}", "--out", str(folder)]
    result = CliRunner().invoke(app, ["reproduce", *arguments, *given])
    assert result.exit_code == 2
    assert said in result.output
    assert not folder.exists()
