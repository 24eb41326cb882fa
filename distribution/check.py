"""Check what was built: `python distribution/check.py FOLDER`, of a source distribution and of both wheels.

One wheel has the kernels and is for a platform, the other has none and is for any.
"""

import re
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from email import message_from_string
from email.message import Message
from pathlib import Path

KERNELS = "qan_gym/native/_kernels.so"
EVERYWHERE = (
    "qan_gym/__init__.py",
    "qan_gym/py.typed",
    "qan_gym/assets/mnist5k.npz",
    "qan_gym/native/src/",
    "qan_agents/__main__.py",
    "qan_agents/py.typed",
    "qan_agents/controllers/assets/",
)
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "distribution/metadata_hook.py")
RELATIVE = re.compile(r'(?:\]\(|\b(?:src|srcset|href)=")(?![a-z]+:|#)([^)"\s]+)')


def check(folder: Path) -> list[str]:
    """What is wrong with the distributions in a folder; empty: nothing."""
    wheels, archives = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    pure = [path for path in wheels if path.name.endswith("-py3-none-any.whl")]
    platform = [path for path in wheels if path not in pure]
    if (len(archives), len(pure), len(platform)) != (1, 1, 1):
        names = ", ".join(path.name for path in (*archives, *wheels)) or "nothing"
        return [f"wanted a .tar.gz, a wheel for any platform and one for this one, and there is {names}"]
    wrong = [f"{archives[0].name}: {fault}" for fault in _of_sources(archives[0])]
    for path, kernels in ((pure[0], False), (platform[0], True)):
        wrong += [f"{path.name}: {fault}" for fault in _of_wheel(path, kernels)]
    return wrong


def _of_sources(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2].removeprefix("agents/") for name in archive.getnames()}
    wrong = _missing((*SOURCES, *EVERYWHERE), names)
    return [*wrong, *(f"{name} is built, and in it" for name in names if name.endswith(".so"))]


def _of_wheel(path: Path, kernels: bool) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        about = message_from_string(archive.read(metadata).decode())
    wrong = _missing(EVERYWHERE, names)
    if (KERNELS in names) != kernels:
        wrong.append(f"{KERNELS} is {'not ' if kernels else ''}in it")
    foreign = {name.partition("/")[0] for name in names} - {"qan_gym", "qan_agents", metadata.partition("/")[0]}
    return [*wrong, *(f"{name} does not belong in it" for name in sorted(foreign)), *_of_metadata(about)]


def _of_metadata(about: Message) -> list[str]:
    wrong = [f"the metadata have no {name}" for name in ("Author", "License-Expression") if name not in about]
    if not about.get_all("Project-URL"):
        wrong.append("the metadata have no Project-URL")
    relative = RELATIVE.findall(str(about.get_payload()))
    return wrong + [f"the description has a relative link, {link}" for link in relative]


def _missing(wanted: Iterable[str], names: Iterable[str]) -> list[str]:
    """What is not among the names; of a folder, which ends with "/", something must be there."""
    there = list(names)
    return [
        f"{name} is missing"
        for name in wanted
        if not (any(one.startswith(name) for one in there) if name.endswith("/") else name in there)
    ]


def main() -> None:
    """Print what is wrong; the exit status is 1 where something is."""
    wrong = check(Path(sys.argv[1]))
    for fault in wrong:
        print(fault)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
