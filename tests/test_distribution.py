"""What is published: the description of the package, its metadata, and the check of what was built."""

import os
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from helpers import load_script
from typer.testing import CliRunner

import qan_gym
from qan_agents.cli.app import app
from qan_gym.utils.extras import install_extra

ROOT = Path(__file__).parents[1]
URL = "https://example.org/x"


def load(name: str) -> ModuleType:
    """A file of distribution/, as a module."""
    return load_script(ROOT / "distribution" / f"{name}.py")


# --- metadata -------------------------------------------------------------------------------------------------------


@pytest.fixture
def hook() -> ModuleType:
    pytest.importorskip("hatchling")
    return load("metadata_hook")


@pytest.mark.parametrize(
    ("relative", "absolute"),
    [
        ("![a](docs/a.webp)", f"![a]({URL}/raw/HEAD/docs/a.webp)"),
        ('<img src="docs/a.webp" width="1">', f'<img src="{URL}/raw/HEAD/docs/a.webp" width="1">'),
        ('<source srcset="docs/a.webp">', f'<source srcset="{URL}/raw/HEAD/docs/a.webp">'),
        ("[a](docs/a.md#b)", f"[a]({URL}/blob/HEAD/docs/a.md#b)"),
        ('<a href="LICENSE">', f'<a href="{URL}/blob/HEAD/LICENSE">'),
        ("[![a](b.svg)](c.md)", f"[![a]({URL}/raw/HEAD/b.svg)]({URL}/blob/HEAD/c.md)"),
        ("[![a](https://x/b.svg)](c.md)", f"[![a](https://x/b.svg)]({URL}/blob/HEAD/c.md)"),
        ("[a](#b) [c](https://d/e) <a href='f'>", "[a](#b) [c](https://d/e) <a href='f'>"),
        ("```python\nx[a](b)\n```\n[c](d)", f"```python\nx[a](b)\n```\n[c]({URL}/blob/HEAD/d)"),
    ],
)
def test_links_of_the_description_lead_into_the_repository(relative: str, absolute: str, hook: ModuleType) -> None:
    assert hook.with_absolute_links(relative, URL) == absolute


def test_urls_and_description_follow_from_one_setting(hook: ModuleType) -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["metadata"]["hooks"]["custom"]
    metadata = {}
    hook.RepositoryHook(str(ROOT), {**config, "repository": f"{URL}/"}).update(metadata)
    assert metadata["urls"]["Source"] == URL
    assert all(url.startswith(URL) for url in metadata["urls"].values())
    assert not load("check").RELATIVE.findall(metadata["readme"]["text"])
    assert f"{URL}/raw/HEAD/docs/pictures/" in metadata["readme"]["text"]


def test_the_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"qan-gym {qan_gym.__version__}\n"


def test_the_citation() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    (paper,) = citation["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:1606.01467"
    assert [author["family-names"] for author in paper["authors"]][:2] == ["Fu", "Lin"]


def test_workflows_call_what_there_is() -> None:
    """They are YAML, and the scripts that they run are executable."""
    called = set()
    for path in (ROOT / ".github").rglob("*.yml"):
        content = yaml.safe_load(path.read_text())
        steps = [step for job in content.get("jobs", {}).values() for step in job.get("steps", [])]
        called |= {step["run"].split()[0] for step in steps if step.get("run", "").startswith(".ci/")}
    assert called == {".ci/run", ".ci/package"}
    assert all(os.access(ROOT / script, os.X_OK) for script in called)


# --- hints ----------------------------------------------------------------------------------------------------------


def test_the_hint_how_to_install_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the checkout, wherever it is called from; without one, that of the release."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    monkeypatch.chdir(ROOT)
    assert install_extra("bench") == "python -m pip install -e '.[bench]'"
    monkeypatch.chdir(tmp_path)
    assert install_extra("bench") == f"python -m pip install -e '{ROOT}[bench]'"
    monkeypatch.setattr(qan_gym, "__file__", str(tmp_path / "site-packages" / "qan_gym" / "__init__.py"))
    assert install_extra("bench") == "python -m pip install 'qan-gym[bench]'"
    assert "bench" in extras


def test_the_hint_is_printed_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(qan_gym, "__file__", str(tmp_path / "qan_gym" / "__init__.py"))
    monkeypatch.setitem(sys.modules, "qan_agents.bench.report", None)
    result = CliRunner().invoke(app, ["report", "x.parquet"])
    assert result.exit_code == 2
    assert result.stderr == "qan: qan_agents.bench.report is missing: python -m pip install 'qan-gym[bench]'\n"
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = ["bench", "--controller", "constant", "--out", "x.parquet", "--ray", "local"]
    assert "'qan-gym[ray]'" in CliRunner().invoke(app, arguments).stderr  # which brings what bench needs, too


# --- the check of what was built ------------------------------------------------------------------------------------


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A source distribution and two wheels as they should be, of empty files."""
    check = load("check")
    metadata = "Author: a\nLicense-Expression: MIT\nProject-URL: Source, https://x\n\n[a](https://x)"
    with tarfile.open(tmp_path / "qan_gym-1.tar.gz", "w:gz") as archive:
        for name in (*check.SOURCES, *check.EVERYWHERE):
            own = f"agents/{name}" if name.startswith("qan_agents") else name
            archive.addfile(tarfile.TarInfo(f"qan_gym-1/{own}x" if name.endswith("/") else f"qan_gym-1/{own}"))
    for tag, more in (("any", []), ("linux_x86_64", [check.KERNELS])):
        with zipfile.ZipFile(tmp_path / f"qan_gym-1-py3-none-{tag}.whl", "w") as wheel:
            for name in (*check.EVERYWHERE, *more):
                wheel.writestr(f"{name}x" if name.endswith("/") else name, b"")
            wheel.writestr("qan_gym-1.dist-info/METADATA", metadata)
    return tmp_path


def added(path: Path, name: str, content: str = "") -> None:
    with zipfile.ZipFile(path, "a") as wheel:
        wheel.writestr(name, content)


def test_what_was_built_is_checked(built: Path) -> None:
    check, pure = load("check"), built / "qan_gym-1-py3-none-any.whl"
    assert check.check(built) == []
    added(pure, check.KERNELS)
    added(pure, "tests/x.py")
    assert check.check(built) == [f"{pure.name}: {check.KERNELS} is in it", f"{pure.name}: tests does not belong in it"]
    pure.unlink()
    (fault,) = check.check(built)
    assert "a wheel for any platform" in fault


@pytest.mark.parametrize(
    ("metadata", "fault"),
    [
        ("License-Expression: MIT\nProject-URL: a, b\n\n", "the metadata have no Author"),
        ("Author: a\nLicense-Expression: MIT\n\n", "the metadata have no Project-URL"),
        ("Author: a\nLicense-Expression: MIT\nProject-URL: a, b\n\n![c](d.png)", "a relative link, d.png"),
    ],
)
def test_metadata_are_checked(metadata: str, fault: str, built: Path) -> None:
    wheel = built / "qan_gym-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as old:
        names = [name for name in old.namelist() if not name.endswith("METADATA")]
    with zipfile.ZipFile(wheel, "w") as new:
        for name in names:
            new.writestr(name, b"")
        new.writestr("qan_gym-1.dist-info/METADATA", metadata)
    (found,) = load("check").check(built)
    assert fault in found
