"""Agents and controllers on the Hugging Face hub.

A repository holds a controller (`controller.safetensors`), or the agent of a run (`config.json`, `manifest.json`, the
model), and a model card. Only safetensors and JSON are pushed and pulled; nothing that is pulled can run code.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from qan_agents.controllers.controller import Controller
from qan_agents.controllers.shipped import controller_file
from qan_agents.experiments import manifest as manifests
from qan_agents.experiments.agent import agent_class
from qan_agents.experiments.manifest import Manifest
from qan_agents.experiments.run_folder import CONFIG, Run
from qan_agents.sharing.card import controller_card, run_card
from qan_gym.utils.counts import counted
from qan_gym.utils.files import ASIDE, require_writable

CONTROLLER = "controller.safetensors"
CARD = "README.md"
SAFE = re.compile(r"[\w-][\w.-]*\.(safetensors|json)")  # the names of files that are pulled
PICKLES = (".zip", ".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy")  # what may hold one

Files = dict[str, bytes]


# --- pushing --------------------------------------------------------------------------------------------------------


def collect(what: Path, repository: str, judgement: Path | None) -> Files:
    """The files of a repository, its card among them.

    Args:
        what: the folder of a run, the file of a controller, or the name of one that ships.
        repository: OWNER/NAME, for the card.
        judgement: a scoreboard of `qan judge` that has the controller.

    Raises:
        ValueError: there is nothing that can be shared; the message says why.
        FileNotFoundError: there is no such file.
    """
    _check_repository(repository)
    if what.is_dir():
        if judgement is not None:
            raise ValueError("--judgement goes with a controller: qan judge does not judge the agent of a run")
        return _of_run(Run(what), repository)
    what = controller_file(what)
    controller = Controller.load(what)
    content = what.read_bytes()
    card = controller_card(controller, hashlib.sha256(content).hexdigest(), repository, judgement)
    return {CONTROLLER: content, CARD: card.encode()}


def _of_run(run: Run, repository: str) -> Files:
    config = run.config()
    suffix = agent_class(config.agent).model_suffix
    if suffix != ".safetensors":
        raise ValueError(
            f"{run.folder}: the agent {config.agent} is saved as {suffix}, which holds pickles, and those may run code "
            "where they are loaded; train dqn-native or ppo to share it"
        )
    model, whole = run.model_file, run.manifest()
    last = whole.last.model_copy(update={"files": {model.name: whole.last.files[model.name]}})
    return {
        CONFIG: (run.folder / CONFIG).read_bytes(),
        manifests.NAME: Manifest(config=whole.config, rounds=[last]).content(),
        model.name: model.read_bytes(),
        CARD: run_card(run, repository).encode(),
    }


def push_to_hub(files: Files, repository: str, private: bool) -> str:
    """Upload files in one commit, to a repository that is made where there is none; returns its address.

    Raises:
        ValueError: the hub refuses it, or cannot be reached.
    """
    api = HfApi()
    with _hub_errors(repository), tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="qan push")
    return str(url)


# --- pulling --------------------------------------------------------------------------------------------------------


def pull_from_hub(repository: str, out: Path | None, revision: str | None) -> list[str]:
    """Get a controller or an agent into a new folder, which is there once everything in it has been verified.

    Args:
        repository: OWNER/NAME.
        out: the folder; None: NAME.
        revision: a branch, tag or commit; None: the newest.

    Returns:
        Lines that say what was got, and what to do with it.

    Raises:
        ValueError: the folder is taken; there is nothing in the repository that is safe to load; a file is damaged; or
            the hub cannot be reached.
    """
    _check_repository(repository)
    folder = out or Path(repository.rpartition("/")[2])
    if folder.exists():
        raise ValueError(f"{folder} is there already: give another folder with --out")
    require_writable(folder.absolute().parent)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=ASIDE, dir=folder.absolute().parent))
    try:
        _download(repository, revision, aside)
        lines = _verified(aside, folder)
        aside.chmod(0o755)
        aside.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return lines


def _download(repository: str, revision: str | None, folder: Path) -> None:
    """The files of a repository that are wanted, as plain files."""
    api = HfApi()
    with _hub_errors(repository):
        there = api.list_repo_files(repository, revision=revision)
    names = wanted(there)
    if not names:
        unsafe = ", ".join(name for name in there if name.endswith(PICKLES))
        reason = f"; {unsafe} may hold pickles, which could run code, and is not loaded" if unsafe else ""
        raise ValueError(f"{repository} holds neither a controller nor an agent of qan push{reason}")
    with tempfile.TemporaryDirectory() as cache, _hub_errors(repository):
        for name in names:
            got = api.hf_hub_download(repository, name, revision=revision, cache_dir=cache)
            shutil.copyfile(got, folder / name)


def wanted(names: list[str]) -> list[str]:
    """Those of the files of a repository that make a controller or an agent; empty: it has neither."""
    if CONTROLLER in names:
        return [CONTROLLER]
    if {CONFIG, manifests.NAME} <= set(names):
        models = [name for name in names if name.startswith("model.") and SAFE.fullmatch(name)]
        return [CONFIG, manifests.NAME, *models] if models else []
    return []


def _verified(aside: Path, folder: Path) -> list[str]:
    """Load what was pulled.

    Raises:
        ValueError: it is damaged, or of another version.
    """
    if (aside / CONTROLLER).exists():
        controller = Controller.load(aside / CONTROLLER)
        settings, path = controller.settings, folder / CONTROLLER
        said = [f"a controller of {' and '.join(settings.optimizers)}, for {settings.family}: {path}"]
        return said if settings.factor is None else [*said, f"judge it: qan judge {path}"]
    run = Run(aside)
    config = run.config()
    suffix = agent_class(config.agent).model_suffix
    if suffix != ".safetensors":
        raise ValueError(f"its agent {config.agent} is loaded from {suffix}, which holds pickles: refused")
    _ = run.model_file
    return [
        f"the agent {config.agent} for {config.env} after {counted(run.progress().episodes, 'training')}: {folder}",
        f"play it on unseen seeds: qan evaluate {folder}",
    ]


# --- both -----------------------------------------------------------------------------------------------------------


def _check_repository(repository: str) -> None:
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository, re.ASCII):
        raise ValueError(f"{repository!r} is no repository of the hub: write OWNER/NAME")


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """What the hub and the connection to it raise, as one kind of error with the reason.

    Raises:
        ValueError: instead of them.
    """
    try:
        yield
    except HfHubHTTPError as error:
        raise ValueError(f"{repository}: the hub refuses it: {error} (`hf auth login` logs in)") from error
    except Exception as error:  # libraries of connections have their own kinds
        raise ValueError(f"{repository}: the hub cannot be used: {type(error).__name__}: {error}") from error
