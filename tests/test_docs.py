"""The site builds without a warning, code and commands in the docs run, public names have complete docstrings."""

import ast
import html.parser
import importlib
import json
import logging
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from contextlib import suppress
from pathlib import Path
from unittest import SkipTest
from urllib.parse import unquote, urlsplit

import click
import griffe
import pytest
import typer
import yaml
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser
from typer.testing import CliRunner

from qan_agents.bench.grid import cells_of
from qan_agents.bench.results import read_table
from qan_agents.cli.app import app

ROOT = Path(__file__).parents[1]
GENERATED = re.compile(  # by docs/build.py, from docstrings, settings and results
    r"docs/(environments/(Qan|observations|schedules)|reference/(dqn|ppo)-settings|report/|scoreboard)"
)
OUTSIDE = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "studies").glob("**/README.md")),
]  # of the site
PAGES = [str(path.relative_to(ROOT)) for path in (*OUTSIDE, *sorted((ROOT / "docs").rglob("*.md")))]
PAGES = [name for name in PAGES if not GENERATED.match(name)]
SCRIPTS = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "studies").rglob("*.py")]
SCRIPTS += [ROOT / "docs" / name for name in ("pictures.py", "family_pictures.py", "readme_pictures.py")]
HOME = "docs/index.md"
CHEAP = ("list", "data")  # commands that are run, not only parsed


# --- the site ---------------------------------------------------------------------------------------------------------


class Links(html.parser.HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links, self.anchors = set(), set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("href", "src") and value:
                self.links.add(value)
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Every page of the site, by its path in it; built from a copy, so that nothing is written into the work tree."""
    root = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", root / "docs")
    shutil.copy(ROOT / "zensical.toml", root)
    for folder in ("qan_gym", "agents", "studies"):
        (root / folder).symlink_to(ROOT / folder)
    done = subprocess.run([sys.executable, root / "docs" / "build.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {page.relative_to(root / "site"): Links(page) for page in (root / "site").rglob("*.html")}
    assert len(pages) > 15
    return root / "site", pages


@pytest.mark.slow
def test_every_link_of_the_site_leads_somewhere(site):
    """As a browser follows them: also those of the navigation, of generated pages, and pictures."""
    root, pages = site
    broken = []
    for page, found in pages.items():
        if page.name == "404.html":  # its links are for a server at the root
            continue
        for link in found.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (root / page.parent / unquote(parts.path)).resolve() if parts.path else root / page
            target = target / "index.html" if target.is_dir() else target
            anchor, linked = unquote(parts.fragment), pages.get(target.relative_to(root))
            if not target.is_file() or (anchor and linked is not None and anchor not in linked.anchors):
                broken.append(f"{page}: {link}")
    assert not broken


@pytest.mark.slow
def test_every_id_has_a_page_with_a_picture(site):
    from qan_gym.registration import ENTRY_POINTS

    for env_id in ENTRY_POINTS:
        found = site[1][Path("environments") / env_id / "index.html"]
        assert {"action-space", "observation-space", "rewards", "episode-end", "settings"} <= found.anchors
        assert f"../../pictures/{env_id}.webp" in found.links
        assert (ROOT / "docs" / "pictures" / f"{env_id}.webp").stat().st_size <= 400_000
    long_tail = site[1][Path("environments") / "QanMinibatch-LongTail-v0" / "index.html"]
    assert "../../pictures/long-tail-classes.png" in long_tail.links


def test_every_page_is_in_the_navigation():
    """Zensical reports neither a page that is not in it nor an entry without a page."""
    nav = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    entries = set(re.findall(r"[\w/-]+\.md", str(nav)))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if not GENERATED.match(f"docs/{page}")} <= entries
    assert {entry for entry in entries if not GENERATED.match(f"docs/{entry}")} <= pages


@pytest.mark.parametrize("page", OUTSIDE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_outside_the_site_leads_somewhere(page):
    """Files, and headings of Markdown files; as GitHub follows them."""
    text = page.read_text(encoding="utf-8")
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        parts = urlsplit("".join(link))
        if parts.scheme or parts.netloc:
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        if not target.exists() or (parts.fragment and parts.fragment not in headings(target)):
            broken.append("".join(link))
    assert not broken


def headings(page: Path) -> set[str]:
    """The anchors of a Markdown file."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readme_is_short_and_stands_alone():
    """CI takes the test command from it; the docs include no part of it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$", "", readme, flags=re.MULTILINE | re.DOTALL)
    assert len(text.splitlines()) <= 120
    assert [line for line in readme.splitlines() if "python -m pytest" in line and "[test]" in line]
    assert not [
        name for name in PAGES if re.search(r"^ *--8<--", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    ]


# --- code and commands in the docs ------------------------------------------------------------------------------------


def texts(name: str, language: str) -> list[str]:
    """The blocks of a page in a language."""
    parser = CodeBlockParser(language, evaluator=lambda example: None)
    return [example.parsed for example in Sybil([parser]).parse(ROOT / name).examples()]


def test_the_home_page_has_the_code_of_the_readme():
    """So it is not run a second time."""
    assert texts(HOME, "python") == texts("README.md", "python")[:1]


LONG = ("docs/agents.md", "docs/controllers.md", "docs/counterfactual.md", "docs/tutorials/benchmark.md")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in LONG else name
        for name in PAGES
        if name != HOME and texts(name, "python")
    ],
)
def test_python_runs(name, tmp_path, monkeypatch, registries):
    """All blocks of a page in order, in one namespace; `<!-- skip: next "reason" -->` skips one."""
    monkeypatch.chdir(tmp_path)
    for example in Sybil([PythonCodeBlockParser(), SkipParser()]).parse(ROOT / name).examples():
        with suppress(SkipTest):
            example.evaluate()


def test_skipped_blocks_have_a_reason():
    for name in PAGES:
        assert not re.findall(
            r"<!-- *skip: *\w+ *-->", (ROOT / name).read_text(encoding="utf-8").replace("skip: end", "")
        ), name


def test_grids_are_valid():
    shown = [text for name in PAGES for text in texts(name, "yaml")]
    stored = [path.read_text(encoding="utf-8") for path in (ROOT / "studies").rglob("grid.yaml")]
    assert shown
    assert len(stored) == 3
    assert all(len(cells_of(yaml.safe_load(text))) > 1 for text in (*shown, *stored))


@pytest.mark.parametrize("study", ["controllers", "controllers_v1", "agent_on_one_cycle", "more_test_images"])
def test_results_of_studies_belong_to_their_grids(study):
    """Each cell in the results is one of the grid, but for the version of the game that the results are of."""
    grid = "agent_on_one_cycle" if study == "more_test_images" else study
    text = (ROOT / "studies" / grid / "grid.yaml").read_text(encoding="utf-8")
    version = "-v1" if study == "controllers_v1" else "-v0"
    assert f"version {version[2:]}" in text.splitlines()[0]
    rows = read_table(ROOT / "studies" / study / "results.parquet").to_pylist()
    there = {
        (
            cell.env.replace("-v1", version),
            json.dumps(cell.env_kwargs, sort_keys=True),
            cell.label,
            cell.runs,
            cell.seed,
        ): cell
        for cell in cells_of(yaml.safe_load(text))
    }
    names = ("prepared_on", "prepared_on_kwargs", "label", "runs", "seed")
    found = [(there[tuple(row[name] for name in names)], row) for row in rows]
    assert all(cell.controller == row["controller"] for cell, row in found)
    assert all(json.loads(row["settings"]) == cell.settings for cell, row in found)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_can_be_imported(script, monkeypatch, registries):
    """Those of a folder import one another: as modules of `studies`, elsewhere as files beside each other."""
    name = ".".join(script.relative_to(ROOT).with_suffix("").parts)
    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.syspath_prepend(str(ROOT))
    importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)


def commands(name: str) -> list[list[str]]:
    """The qan commands in the shell blocks of a page, as lists of words."""
    lines = [line for block in texts(name, "bash") for line in block.replace("\\\n", " ").splitlines()]
    each = [shlex.split(part, comments=True) for line in lines for part in re.split(r"&&|;|\|", line)]
    return [words[1:] for words in each if words[:1] == ["qan"]]


SHOWN = [(name, words) for name in PAGES for words in commands(name)]


@pytest.mark.parametrize(
    ("name", "words"), SHOWN, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_commands_are_valid(name, words):
    """Subcommand and options exist, and take these values."""
    group = typer.main.get_command(app)
    with click.Context(group, info_name="qan") as context:
        subcommand, command, rest = group.resolve_command(context, words)
        command.make_context(subcommand, list(rest), parent=context)
    if subcommand in CHEAP and len(words) == 1:
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output


def test_commands_were_found():
    assert {words[0] for _, words in SHOWN} >= {"train", "bench", "report", "list"}


# --- public names -----------------------------------------------------------------------------------------------------


def public(item: griffe.Object) -> list[griffe.Object]:
    """The public modules, classes, functions and methods of an item, and the item itself."""
    found = [item]
    for member in item.members.values():
        if member.is_alias or member.is_attribute or not (member.is_module or member.lineno):  # made by dataclass
            continue
        constructs = member.name in ("__init__", "__post_init__")
        if constructs or not member.name.startswith("_"):
            found += public(member)
    return found


def raised(function: griffe.Function) -> set[str]:
    """The errors that a function raises by name, without those of functions inside it."""

    def within(node: ast.AST) -> set[str]:
        names = set()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef | ast.Lambda):
                continue
            if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call):
                names.add(ast.unparse(child.exc.func).rpartition(".")[2])
            names |= within(child)
        return names

    return within(ast.parse(textwrap.dedent(function.source)).body[0])


def full_docstring(item: griffe.Object, everything: dict[str, str]) -> str:
    """The docstring of an item; for a constructor also the class's, for `See Other.method` also that method's."""
    text = item.docstring.value if item.docstring else ""
    if item.name.startswith("__"):
        text += item.parent.docstring.value if item.parent.docstring else ""
    if match := re.match(r"See `([\w.]+)`", text):
        text += "".join(other for path, other in everything.items() if path.endswith(f".{match[1]}"))
    return text


@pytest.fixture(scope="module", params=["qan_gym", "qan_agents"])
def package(request):
    return griffe.load(request.param, search_paths=[ROOT, ROOT / "agents"])


def test_public_names_have_docstrings(package):
    silent = [
        item.path for item in public(package) if not item.docstring and item.name not in ("__init__", "__post_init__")
    ]
    assert not silent


def test_docstrings_name_the_errors(package):
    """Every error that a public function raises by name is under Raises; docstrings of commands are help texts."""
    callbacks = [command.callback for command in app.registered_commands]
    commands = {f"{callback.__module__}.{callback.__qualname__}" for callback in callbacks if callback is not None}
    items = [item for item in public(package) if item.is_function]
    everything = {item.path: item.docstring.value if item.docstring else "" for item in items}
    missing = []
    for item in items:
        if item.path in commands:
            continue
        text = full_docstring(item, everything)
        missing += [f"{item.path}: {error}" for error in raised(item) if error not in text.partition("aises")[2]]
    assert not missing


def test_docstrings_are_well_formed(package, caplog):
    """In Google's form, and without arguments that do not exist."""
    with caplog.at_level(logging.WARNING):
        for item in public(package):
            if item.docstring:
                item.docstring.parse("google")
    assert not caplog.messages
