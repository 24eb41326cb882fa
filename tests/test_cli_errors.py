"""Wrong input at the command line: exit status 2, one line on the standard error, and nothing written."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qan_agents.cli.app import app

LONG = "x" * 300  # longer than the name of a file may be
MODULES = {
    "broken_syntax": "def (",
    "raises": "raise RuntimeError('what the module\\nsays')",
    "imports_nothing": "import there_is_no_such_module",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with modules and files that are not what the commands want."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QAN_DEBUG", raising=False)
    for name, text in MODULES.items():
        Path(f"{name}.py").write_text(text)
    Path("empty").mkdir()
    Path("file").write_text("neither a run nor results\n")
    Path("binary").write_bytes(b"\xff\xfe\x00")
    for run, settings in {
        "no_json": b"{",
        "no_text": b"\xff\xfe\x00",
        "list": b"[]",
        "no_run": b"{}",
        "other_run": b'{"run": 5}',
        "null": b'{"run": {"env": null}}',
    }.items():
        Path(run).mkdir()
        Path(run, "config.json").write_bytes(settings)
    Path("config_is_a_folder", "config.json").mkdir(parents=True)
    Path("python.yaml").write_text("environments: !!python/object/apply:os.system ['true']\n")
    Path("unfinished.yaml").write_text("environments: [\n  - {id: QanLR-MNIST5k-v1\ncontrollers: [constant]\n")
    Path("list.yaml").write_text("- 1\n")
    return tmp_path


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """All files of a folder with their contents, but for those that Python writes for imported modules."""
    paths = (path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


def error_of(*arguments: str) -> str:
    """Run a command that is refused; returns the line that it prints."""
    before = snapshot(Path.cwd())
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2, (arguments, result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("qan: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert snapshot(Path.cwd()) == before
    return result.stderr.removeprefix("qan: ").rstrip("\n")


# --- the command line itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ("trian", ["'trian'", "'train'"]),
        ("--nonsense", ["--nonsense", "qan --help"]),
        ("train --episode 3", ["--episode", "--episodes", "qan train --help"]),
        ("train --episodes", ["--episodes", "argument", "qan train --help"]),
        ("train --resume", ["--resume", "argument", "qan train --help"]),
        ("plot run --html=yes", ["--html", "qan plot --help"]),
        ("train QanLR-MNIST5k-v1 more", ["more"]),
        ("evaluate", ["RUN"]),
        ("plot", ["RUN"]),
        ("watch", ["RUN"]),
        ("report", ["RESULTS"]),
        ("check", ["ENV"]),
        ("reference", ["ENV"]),
        ("reproduce", ["RECIPE"]),
        ("evaluate ~there-is-no-such-user/run", ["~there-is-no-such-user"]),
    ],
)
def test_what_is_no_command(arguments: str, messages: list[str], folder: Path) -> None:
    line = error_of(*arguments.split())
    assert all(message in line for message in messages), line


@pytest.mark.parametrize("value", ["0", "-1", "-3", "1.5", "1e9", "x", "", "nan", "10000000000000000000000000"])
@pytest.mark.parametrize(
    "option",
    ["train --episodes", "train --num-envs", "check QanLR-MNIST5k-v1 --seeds", "check QanLR-MNIST5k-v1 --steps"],
)
def test_counts_have_a_range(option: str, value: str, folder: Path) -> None:
    """At least 1, not more than anyone can wait for, and whole."""
    line = error_of(*option.split(), value)
    assert option.split()[-1] in line, line


@pytest.mark.parametrize("value", ["-1", "0.5", "x", "1e3", "4294967296", "10000000000000000000000000"])
@pytest.mark.parametrize("command", ["train", "reproduce mnist-lr", "watch file"])
def test_seeds_have_a_range(command: str, value: str, folder: Path) -> None:
    assert "--seed" in error_of(*command.split(), "--seed", value)


@pytest.mark.parametrize("value", ["0", "-1", "1.01", "nan", "inf", "-inf", "x", ""])
def test_scale_has_a_range(value: str, folder: Path) -> None:
    assert "scale" in error_of("reproduce", "mnist-lr", "--scale", value)


def test_num_envs_divides_the_episodes(folder: Path) -> None:
    assert "num_envs must divide the number of episodes, 20" in error_of("train", "--num-envs", "3")


# --- options that would be ignored ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("--episodes 50", ["--episodes"]),
        ("--episodes 20", ["--episodes"]),  # the default, but given
        ("QanLR-MNIST5k-v1", ["ENV"]),
        ("--agent dqn --preset quick", ["--agent", "--preset"]),
        ("--seed 1 --num-envs 2 --out other", ["--seed", "--num-envs", "--out"]),
        ("--set epochs=1 --agent-set gamma=0.5", ["--set", "--agent-set"]),
    ],
)
def test_resuming_takes_no_settings(arguments: str, names: list[str], folder: Path) -> None:
    line = error_of("train", "--resume", "empty", *arguments.split())
    assert f"{', '.join(sorted(names, key=line.index))} cannot be given with --resume" in line


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epochs", "settings are NAME=VALUE, not 'epochs'"),
        ("=3", "settings are NAME=VALUE, not '=3'"),
        ("", "settings are NAME=VALUE, not ''"),
        ("learningrate=1", "'learningrate'"),
        ("label=2024", "'label'"),
        ("epochs=0", "epochs must be"),
        ("epochs=-1", "epochs must be"),
        ("epochs=1.5", "not 1.5"),
        ("epochs=None", "not None"),
        ("epochs=true", "not True"),
        ("epochs=2024-01-01", "not '2024-01-01'"),
        ("epochs=" + 60 * "[" + 60 * "]", "epochs must be"),
        ("learning_rate=NaN", "learning_rate must be"),
        ("learning_rate=1e999", "learning_rate must be"),
        ("continuous=1", "continuous must be True or False, not 1"),
        ("dataset=2024", "dataset must be"),
        ("dataset=[/x.npz]", "[/x.npz]"),
        ("dataset=[bold]x", "[bold]x"),
        ("dataset=no\x1b[2Jsuch", r"no\x1b[2Jsuch"),
        ("dataset=two\nlines", "two"),
        ("device=nonsense", "nonsense"),
        ("device=0.5", "0.5"),
        ("env_id=QanMinibatch-MNIST5k-v1", "env_id cannot be set"),
        ("render_mode=human", "render_mode cannot be set"),
        ("num_envs=3", "'num_envs'"),
        ("output=torch", "'output'"),
    ],
)
@pytest.mark.parametrize("command", ["train", "reference QanLR-MNIST5k-v1", "check QanLR-MNIST5k-v1 --seeds 5"])
def test_wrong_settings(command: str, setting: str, message: str, folder: Path) -> None:
    line = error_of(*command.split(), "--set", setting)
    assert (message if "device" not in setting or "reference" not in command else "give --device") in line


def test_a_setting_given_twice(folder: Path) -> None:
    assert "'epochs' is given twice" in error_of("train", "--set", "epochs=1", "--set", "epochs=2")


@pytest.mark.parametrize(
    ("setting", "message"), [("gama=0.9", "gama"), ("gamma=2", "gamma"), ("gamma=None", "gamma"), ("gamma", "gamma")]
)
@pytest.mark.parametrize("agent", ["dqn", "dqn-native"])
def test_wrong_hyperparameters(agent: str, setting: str, message: str, folder: Path) -> None:
    assert message in error_of("train", "--agent", agent, "--agent-set", setting)


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ("train --agent dqx", ["'dqx'", "did you mean 'dqn'?"]),
        ("train --preset quik", ["'quik'", "did you mean 'quick'?"]),
        ("list dqx", ["'dqx'", "did you mean 'dqn'?"]),
        ("list sgd-9", ["'sgd-9'", "did you mean 'sgd-"]),
        ("judge sgd-9", ["sgd-9", "did you mean 'sgd-", "long-tail-0"]),
        ("reproduce mnist-rl", ["'mnist-rl'", "did you mean 'mnist-lr'?"]),
        ("train --set learningrate=1", ["'learningrate'", "did you mean 'learning_rate'?"]),
        ("train QanLR-MNIST6k-v0", ["QanLR-MNIST6k", "qan list", "--import MODULE"]),
        ("check Nothing-v0", ["Nothing", "--import MODULE"]),
        ("reference Nothing-v0", ["Nothing"]),
        ("train CartPole-v1", ["qan-gym"]),
        ("reference CartPole-v1", ["not an environment of qan-gym"]),
        ("reference QanLR-MNIST5k-v1 --device nonsense", ["nonsense"]),
        ("bench --controller nothing", ["nothing"]),
        ("bench --env Nothing-v0 --controller constant", ["Nothing"]),
        ("bench", ["--controller"]),
        ("bench file --controller constant", ["--controller"]),
    ],
)
def test_unknown_names(arguments: str, messages: list[str], folder: Path) -> None:
    line = error_of(*arguments.split())
    assert all(message in line for message in messages), line


def test_only_presets_of_the_agent_are_offered(folder: Path) -> None:
    line = error_of("train", "--agent", "dqn", "--preset", "quik")
    assert "there are quick, paper" in line
    assert "rainbow" not in line


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("there_is_no_such_module", "there_is_no_such_module"),
        ("broken_syntax", "SyntaxError"),
        ("raises", "what the module says"),
        ("imports_nothing", "there_is_no_such_module"),
        ("../file", "../file"),
        (".relative", ".relative"),
        ("a b", "'a b'"),
        ("", "''"),
    ],
)
@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "--import", "{}"],
        ["evaluate", "empty", "--import", "{}"],
        ["train", "--resume", "empty", "--import", "{}"],
        ["train", "{}:QanLR-MNIST5k-v1"],
        ["check", "{}:QanLR-MNIST5k-v1"],
        ["reference", "{}:QanLR-MNIST5k-v1"],
        ["bench", "--controller", "constant", "--env", "{}:QanLR-MNIST5k-v1"],
    ],
)
def test_modules_that_cannot_be_imported(arguments: list[str], module: str, message: str, folder: Path) -> None:
    line = error_of(*(argument.format(module) for argument in arguments))
    assert message in line
    assert "cannot be imported" in line


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["evaluate", "plot", "plot --html", "watch --video video.mp4", "train --resume"])
@pytest.mark.parametrize(
    "run",
    [
        "nothing",
        "empty",
        "file",
        "file/below",
        LONG,
        "no_json",
        "no_text",
        "list",
        "no_run",
        "other_run",
        "null",
        "config_is_a_folder",
    ],
)
def test_what_is_no_run(command: str, run: str, folder: Path) -> None:
    assert run in error_of(*command.split(), run)


@pytest.mark.parametrize(
    "arguments",
    [
        "train --out file",
        "train --out file/below",
        f"train --out {LONG}",
        "train --out no_json",
        "reference QanLR-MNIST5k-v1 --out file",
        "reference QanLR-MNIST5k-v1 --out file/below",
        f"reference QanLR-MNIST5k-v1 --out {LONG}",
        "bench --controller constant --out file",
        "bench --controller constant --out binary",
        "bench --controller constant --out empty",
        "bench --controller constant --out file/below",
        "bench nothing.yaml",
        "bench empty",
        "bench binary",
        "bench python.yaml",
        "bench unfinished.yaml",
        "bench list.yaml",
        "report nothing.parquet",
        "report file",
        "report binary",
        "report empty",
        "report file/below",
    ],
)
def test_what_cannot_be_read_or_written(arguments: str, folder: Path) -> None:
    """The message names it, or what is in its place."""
    assert arguments.split()[-1].partition("/")[0] in error_of(*arguments.split())


@pytest.mark.parametrize(
    ("command", "run", "goes_on"),
    [
        ("train", "docs", None),
        ("meta-train --rounds 1", "docs", None),
        ("meta-train --rounds 1", "of_train", None),
        ("meta-train --rounds 1", "of_meta_train", "qan meta-train --resume of_meta_train"),
        ("train", "of_meta_train", None),
        ("train", "of_train", "qan train --resume of_train"),
    ],
)
def test_folders_that_are_taken(command: str, run: str, goes_on: str | None, folder: Path) -> None:
    """Only what the command made can be gone on with; a new folder is asked for, not the option that was given."""
    for name, files in {
        "docs": ["notes.md"],
        "of_meta_train": ["config.json"],
        "of_train": ["config.json", "manifest.json"],
    }.items():
        Path(name).mkdir()
        for file in files:
            Path(name, file).write_text("{}")
    line = error_of(*command.split(), "--out", run)
    assert line.startswith(f"{run} is there already")
    assert line.endswith("give a new folder with --out")
    assert ("holds something else" in line) == (goes_on is None)
    assert ("--resume" in line) == (goes_on is not None)
    assert goes_on is None or goes_on in line


def test_what_is_no_run_is_said_before_a_display_is_missed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matplotlib.get_backend", lambda: "agg")
    assert error_of("watch", "nothing") == "nothing is not a run: there is no config.json in it"


def test_data_that_are_no_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAN_GYM_DATA", str(folder / "file"))
    assert str(folder / "file") in error_of("train", "QanLR-MNIST-v0")


# --- which errors these are -----------------------------------------------------------------------------------------


def failing(error: Exception) -> Callable[..., None]:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail


def errors() -> dict[str, Exception]:
    """Errors that the input, files or the machine cause."""
    import pickle
    import zlib

    return {
        "permission": PermissionError(13, "Permission denied", "/there/file"),
        "disk": OSError(28, "No space left on device"),
        "pickle": pickle.UnpicklingError("not allowed"),
        "zlib": zlib.error("Error -3 while decompressing data"),
        "end": EOFError("ended too early"),
        "text": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        "memory": MemoryError("Unable to allocate 1 TiB"),
        "library": ImportError("cannot import name 'x'"),
        "empty": ValueError(),
        "lines": ValueError("first\n  second\n"),
    }


@pytest.mark.parametrize("kind", errors())
def test_errors_from_outside(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are a line; with QAN_DEBUG set they keep their traceback."""
    error = errors()[kind]
    monkeypatch.setattr("qan_gym.data.datasets.data_root", failing(error))
    line = error_of("data")
    if kind == "permission":
        assert line == "/there/file: Permission denied"
    if kind == "lines":
        assert line == "first second"
    assert line
    monkeypatch.setenv("QAN_DEBUG", "1")
    shown = CliRunner().invoke(app, ["data"]).exception
    assert error in (shown, shown.__cause__)


@pytest.mark.parametrize("error", [TypeError("x"), KeyError("x"), AssertionError(), RuntimeError("x")])
def test_faults_of_the_program_keep_their_traceback(
    error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qan_gym.data.datasets.data_root", failing(error))
    assert CliRunner().invoke(app, ["data"]).exception is error


def test_interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qan_gym.data.datasets.data_root", failing(KeyboardInterrupt()))  # type: ignore[arg-type]
    result = CliRunner().invoke(app, ["data"])
    assert result.exit_code == 130
    assert "Traceback" not in result.output
