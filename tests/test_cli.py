"""The command `qan`: modules that the user names, settings, terminals, and the environments that it lists."""

import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import pytest
import typer
from typer.testing import CliRunner

from qan_agents.__main__ import main
from qan_agents.bench.grid import cautions, cells_of
from qan_agents.budgets import LEAST_SEEDS, LEAST_STEPS, caution
from qan_agents.cli import common
from qan_agents.cli import environments as cli_environments
from qan_agents.cli import train as cli_train
from qan_agents.cli.app import COMMANDS, app
from qan_agents.controllers.learners import LEARNERS
from qan_agents.controllers.shipped import shipped_files, shipped_paths
from qan_agents.env_ids import import_module_of, task_of
from qan_agents.experiments.reproduce import RECIPES
from qan_agents.experiments.trackers import TRACKERS
from qan_agents.seeds import UNSEEN_BELOW
from qan_gym.families.factory import FAMILIES
from qan_gym.registration import ENTRY_POINTS, VECTOR_ENTRY_POINT
from qan_gym.tasks import TASKS
from qan_gym.utils.counts import counted
from qan_gym.utils.durations import in_words
from qan_gym.vector_env import QanVectorEnv

LR = "QanLR-MNIST5k-v1"

MODULE = """
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.envs.registration import register

class IgnoresActions(CartPoleEnv):
    def step(self, action):
        return super().step(0)

register("IgnoresActions-v0", entry_point=IgnoresActions, max_episode_steps=50)
register("Mine-v0", entry_point="qan_gym.env:QanEnv", kwargs={"env_id": "QanLR-MNIST5k-v1", "epochs": 2})
"""

# `python -P` adds no folder to the search path, as in the script `qan` that pip installs.
SCRIPT = """
import sys
from qan_agents.__main__ import main

def qan(*arguments):
    sys.argv = ["qan", *arguments]
    try:
        main()
    except SystemExit as end:
        return end.code

assert qan("list") == 0
assert "stable_baselines3" not in sys.modules, "listing imports every agent"
assert qan("check", "my_module:IgnoresActions-v0", "--seeds", "5") == 1
"""


def invoke(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.output, result.exception)
    return result.output


@pytest.mark.slow
def test_the_current_folder_is_searched_for_modules(tmp_path: Path) -> None:
    """Also by the script `qan`; and `qan list` imports no agent."""
    (tmp_path / "my_module.py").write_text(MODULE)
    path = os.pathsep.join(folder for folder in sys.path if folder)
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not certified: the actions of my_module:IgnoresActions-v0 change nothing" in done.stdout


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that registers environments."""
    from gymnasium.envs.registration import registry

    before = dict(registry)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "another_module.py").write_text(MODULE)
    yield "another_module"
    sys.modules.pop("another_module", None)
    registry.clear()
    registry.update(before)


def test_the_task_of_an_id(module: str) -> None:
    """Of those of the package, and of those that a module registers."""
    for env_id in ENTRY_POINTS:
        typical = FAMILIES[env_id].record().settings() if env_id in FAMILIES else {}
        assert task_of(env_id, {}) == replace(TASKS[env_id], **typical)
    assert task_of("QanLR-Family-v0", {"split": "test", "validate_every": 40}).validate_every == 40
    assert task_of(f"qan_gym:{LR}", {"epochs": 3}).epochs == 3
    assert import_module_of(f"{module}:Mine-v0") == "Mine-v0"
    assert task_of(f"{module}:Mine-v0", {}).epochs == 2
    assert task_of("Mine-v0", {"epochs": 4}).epochs == 4
    with pytest.raises(ValueError, match="CartPole-v1 is not an environment of qan-gym"):
        task_of("CartPole-v1", {})


def test_ids_of_a_module_get_the_vector_environment(module: str) -> None:
    """Where they play qan-gym's own environment, so that agents and the bench can play them; no others do."""
    import_module_of(f"{module}:Mine-v0")
    assert gym.spec("Mine-v0").vector_entry_point == VECTOR_ENTRY_POINT
    assert gym.spec("IgnoresActions-v0").vector_entry_point is None
    envs = gym.make_vec("Mine-v0", num_envs=2, meta_momentum=None, reference=None)
    assert isinstance(envs.unwrapped, QanVectorEnv)
    assert envs.unwrapped.config.epochs == 2
    envs.close()


def test_modules_come_from_the_current_folder_once_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of somebody else's, in which a command runs, is not searched for libraries."""
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    monkeypatch.chdir(tmp_path)
    Path("module_of_this_folder.py").write_text("")
    invoke("list")
    assert str(tmp_path) not in sys.path
    invoke("list", "--import", "module_of_this_folder")
    assert sys.path[-1] == str(tmp_path)
    assert "module_of_this_folder" in sys.modules
    sys.modules.pop("module_of_this_folder")


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("null", None),
        ("None", None),
        ("true", True),
        ("True", True),
        ("false", False),
        ("False", False),
        ("3", 3),
        ("-0.5", -0.5),
        ("1e-3", 1e-3),
        ("1_000", 1000),
        ('"3"', "3"),
        ("'None'", "None"),
        ('["a", null]', ["a", None]),
        ("['a', None]", ["a", None]),
        ("('a', True)", ["a", True]),
        ('{"a": false}', {"a": False}),
        ("{'a': False}", {"a": False}),
        ("linear", "linear"),
        ("2024-01-01", "2024-01-01"),
        ("none", "none"),
        ("None, please", "None, please"),
        ("", ""),
        ("b'x'", "b'x'"),
        ("1j", "1j"),
        ("...", "..."),
        ("\\d.npz", "\\d.npz"),
        ("[/x.npz]", "[/x.npz]"),
        ("__import__('os')", "__import__('os')"),
        (10_000 * "[", 10_000 * "["),
        ("data/~x.npz", "data/~x.npz"),
    ],
)
def test_values_as_json_and_python_write_them(text: str, value: object) -> None:
    parsed = common.parse_settings([f"name={text}"])["name"]
    assert parsed == value
    assert type(parsed) is type(value)


def test_a_path_below_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a setting as in an option, where no shell replaces the ~ behind a "="."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert common.parse_settings(["dataset=~/x.npz"]) == {"dataset": str(tmp_path / "home" / "x.npz")}
    assert common.expanded(Path("~/runs")) == tmp_path / "home" / "runs"
    for command in (["evaluate", "~/no"], ["plot", "~/no"], ["watch", "~/no"], ["train", "--resume=~/no"]):
        assert str(tmp_path / "home" / "no") in CliRunner().invoke(app, command).stderr
    (tmp_path / "home" / "taken").write_text("")
    for command in (["train", "--out=~/taken"], ["reference", LR, "--out=~/taken"]):
        assert str(tmp_path / "home" / "taken") in CliRunner().invoke(app, command).stderr
    assert not (tmp_path / "~").exists()


def test_none_reaches_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli_train, "_train_and_evaluate", lambda *_, **__: None)
    invoke(*QUICK_TRAINING, "--out", "run")
    kwargs = json.loads(Path("run", "config.json").read_text())["run"]["env_kwargs"]
    given = {"epochs": 1, "train_size": 100, "meta_momentum": None, "reference": None}
    assert kwargs.items() >= given.items()
    assert kwargs.keys() > given.keys()  # what the agent asks for


# --- terminals ------------------------------------------------------------------------------------------------------

FOREIGN = ("[bold]", "[/x.npz]", "[/]", ":smile:", "[link=http://x]y[/link]", "a[b]c", "$x^$", "\\[x]")


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the console writes to, when it is no terminal."""
    file = io.StringIO()
    monkeypatch.setattr(common, "console", common.PlainConsole(soft_wrap=True, file=file))
    return file


@pytest.mark.parametrize("text", FOREIGN)
def test_foreign_text_is_no_markup(text: str, pipe: io.StringIO) -> None:
    """In lines, tables, spinners and progress bars."""
    table = common.table_of(text, title=text, caption=text)
    table.add_row(text)
    bars = common.progress_bar("{task.fields[name]}")
    bars.add_task("", name=text)
    for content in (text, table, common.plain(text), bars.get_renderable()):
        common.console.print(content)
    assert pipe.getvalue().count(text) == 7


def test_control_characters_are_escaped(pipe: io.StringIO) -> None:
    """A name cannot move the cursor, nor turn the text around; the bytes of a path that are no text can be printed."""
    common.console.print("a\x1b[2Jb\u202ec\rd\x07e\udcfff")
    assert pipe.getvalue() == r"a\x1b[2Jb\u202ec\rd\x07e\udcfff" + "\n"


def test_piped_lines_are_not_wrapped(pipe: io.StringIO) -> None:
    path = "/".join(60 * ["a folder"])
    common.console.print(f"written: {path}")
    assert pipe.getvalue() == f"written: {path}\n"


def test_piped_tables_are_not_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    words = " ".join(100 * ["word"])
    table = common.table_of("column")
    table.add_row(words)
    runner = CliRunner()
    with runner.isolation() as (out, *_):
        common.print_wrapped(table)
        assert words in out.getvalue().decode()


def test_the_width_that_is_asked_for_holds_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tables and for sentences; nothing is cut off."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(common, "console", common.PlainConsole(soft_wrap=True))
    shown = invoke("list", LR).splitlines() + invoke("list").splitlines()
    assert 90 < max(map(len, shown)) <= 100
    assert not any("…" in line for line in shown)


NO_REFERENCE = ["--set", "meta_momentum=None", "--set", "reference=null"]  # which would be trained
QUICK_TRAINING = ["train", LR, "--episodes", "1", "--set", "epochs=1", "--set", "train_size=100", *NO_REFERENCE]


def as_in_terminal(
    encoding: str, columns: int, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str]:
    """Run the command as in a terminal of an encoding and a width; returns its exit status, and what it shows."""
    screen = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(screen, encoding=encoding, write_through=True))
    monkeypatch.setattr(sys, "argv", ["qan", *arguments])
    for module in (common, cli_train, cli_environments):
        terminal = common.PlainConsole(soft_wrap=True, force_terminal=True, width=columns)
        monkeypatch.setattr(module, "console", terminal)
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code, screen.getvalue().decode(encoding)


@pytest.mark.parametrize(
    ("encoding", "columns"),
    [
        pytest.param("latin-1", 40, marks=pytest.mark.slow),
        pytest.param("ascii", 40, marks=pytest.mark.slow),
        pytest.param("cp1252", 80, marks=pytest.mark.slow),
        pytest.param("utf-8", 40, marks=pytest.mark.slow),
    ],
)
def test_terminals(encoding: str, columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training with its bar, spinner, table and paths goes through in every encoding, and cuts no number off."""
    monkeypatch.chdir(tmp_path)
    status, shown = as_in_terminal(encoding, columns, [*QUICK_TRAINING, "--out", "exp[ablation] é 名"], monkeypatch)
    assert status == 0, shown
    name = {"utf-8": "é 名", "ascii": r"\xe9 \u540d"}.get(encoding, r"é \u540d")
    assert f"drawn: exp[ablation] {name}/accuracy.png" in shown
    assert "unseen seeds" in shown
    assert r"\u2026" not in shown
    assert "…" not in shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("arguments", [[], ["--help"], ["train", "--help"], ["list"], ["bench", "--help"]])
def test_help_in_terminals(encoding: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    status, shown = as_in_terminal(encoding, 40, arguments, monkeypatch)
    assert status == 0, shown
    assert "Usage: qan" in shown or "environments" in shown


def test_an_error_in_a_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    status, shown = as_in_terminal("ascii", 40, ["plot", "é[/x]"], monkeypatch)
    assert status == 2
    assert shown == r"qan: \xe9[/x] is not a run: there is no config.json in it" + "\n"


def test_the_command_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be pasted: the folder is quoted, and the modules are imported again."""

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli_train, "_train", interrupt)
    out = "my runs/exp[ablation]"
    output = invoke(*QUICK_TRAINING, "--out", out, "--import", "json", status=130)
    assert "go on with: qan train --resume 'my runs/exp[ablation]' --import json\n" in output


# --- help -----------------------------------------------------------------------------------------------------------

EXAMPLES = [(name, arguments) for name, command in COMMANDS.items() for arguments in command.examples]


@pytest.mark.parametrize(("name", "arguments"), EXAMPLES)
def test_examples_of_the_help_are_valid(name: str, arguments: str) -> None:
    group = typer.main.get_command(app)
    with group.make_context("qan", [name]) as context:
        command = group.get_command(context, name)
        command.make_context(name, shlex.split(arguments), parent=context)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_examples_that_fit_a_terminal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = invoke(name, "--help").splitlines()
    assert max(map(len, shown)) <= 80, shown
    examples = shown[shown.index("  Examples:") + 1 :]
    assert [line.strip() for line in examples if line.strip()] == [
        f"qan {name} {arguments}".strip() for arguments in COMMANDS[name].examples
    ]


def help_of(command: str) -> str:
    """The help of a command, in one line."""
    return " ".join(invoke(command, "--help").split())


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("meta-train", [*LEARNERS, *FAMILIES]),
        ("reproduce", RECIPES),
        ("train", TRACKERS),
        ("judge", {f"{name}-N" for name in shipped_paths()}),
    ],
)
def test_what_a_help_lists_is_all_there_is(command: str, names: Iterable[str]) -> None:
    assert all(name in help_of(command) for name in names)


def test_ranges_in_the_help_are_those_that_are_accepted() -> None:
    assert f"{LEAST_SEEDS}<=x<=" in help_of("check")
    assert f"{LEAST_STEPS}<=x<=" in help_of("check")
    assert f"0<=x<={UNSEEN_BELOW - 1}" in help_of("watch")
    assert "0<=x<=1]" not in help_of("reproduce")


def test_budgets_that_tell_nothing() -> None:
    assert caution(5, "training") is None
    assert "caution: 2 trainings, too few to tell anything" in caution(2, "training")
    assert "caution: 1 training to learn from, too few" in caution(1, "training", " to learn from")
    grid = {"environments": [LR], "controllers": ["constant"], "evaluation_seeds": 10}
    assert cautions(cells_of({**grid, "runs": [2]})) == []  # nothing is prepared
    tuned = {**grid, "controllers": ["best-constant"]}
    assert cautions(cells_of({**tuned, "runs": [5], "seeds": [0]})) == []
    assert len(cautions(cells_of({**tuned, "runs": [2, 20], "seeds": [0], "evaluation_seeds": 3}))) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", LR, "--episodes", "2"], "caution: 2 trainings to learn from"),
        (["train", LR, "--episodes", "5"], ""),
        (
            ["reproduce", "mnist-minibatch", "--scale", "0.01"],
            "caution: with scale 0.01 a training is a part of an epoch",
        ),
    ],
)
def test_runs_that_tell_nothing_say_so(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, small_data: str, tmp_path: Path
) -> None:
    for name in ("_train", "_evaluate", "_show"):
        monkeypatch.setattr(cli_train, name, lambda *_: None)
    settings = ["dataset=" + small_data, "meta_momentum=None", "reference=None", "batch_size=10"]
    set_ = [word for setting in settings for word in ("--set", setting)]
    output = invoke(*arguments, *set_, "--out", tmp_path / "run")
    assert said in output
    assert ("caution" in output) == bool(said)


@pytest.mark.parametrize(("seconds", "said"), [(1.2, "1 second"), (60, "60 seconds"), (91, "2 minutes")])
def test_durations_in_words(seconds: float, said: str) -> None:
    assert in_words(seconds) == f"about {said}"


@pytest.mark.parametrize(("count", "said"), [(0, "0 seeds"), (1, "1 seed"), (2, "2 seeds"), (1000, "1,000 seeds")])
def test_counts_in_words(count: int, said: str) -> None:
    assert counted(count, "seed") == said


# --- lists ----------------------------------------------------------------------------------------------------------


def test_list() -> None:
    """Every id with what its actions control; the agents, and the presets of one."""
    listing = invoke("list")
    assert all(env_id in listing for env_id in ENTRY_POINTS)
    for words in ("learning", "classes of", "dqn, dqn-ensemble, dqn-native", "uniform", "best-constant"):
        assert words in listing
    assert invoke("list", "dqn-native").strip().startswith("presets of dqn-native: quick, paper, rainbow, control")
    assert "batches_per_action" in invoke("list", LR)
    assert all(name in listing for name in shipped_files())


def test_the_list_breaks_no_word_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(common, "console", common.PlainConsole(soft_wrap=True))
    shown = invoke("list")
    assert shown.count("│ mini-batches ") == 3  # of the games that choose classes
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sgd-0", ["learning rate for sgd", "QanLR-Family-v0", "config: seed: 0", "trainings: 30720", "12**a"]),
        ("long-tail-1", ["shares of the classes", "QanMinibatch-LongTail-v0", "config: seed: 1"]),
    ],
)
def test_a_controller_that_ships_is_described(name: str, said: list[str]) -> None:
    shown = invoke("list", name)
    assert all(words in shown for words in (*said, str(shipped_files()[name])))


def test_names_that_are_near_in_the_list() -> None:
    assert "did you mean 'QanLR-MNIST5k-v1'" in " ".join(invoke("list", "QanLR-MNIST5k-v0", status=2).split())
