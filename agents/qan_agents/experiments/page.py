"""Pages: headings, paragraphs, tables and pictures, written as one self-contained HTML file or as Markdown.

What stands on a page (labels, names, settings, the text of errors) is text, whoever wrote it: both kinds of pages
escape everything that they are given.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from qan_gym.utils.files import write_aside

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
p, li, h1, h2 { overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; margin-bottom: 1rem; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid #8886; text-align: left; vertical-align: top; }
td { white-space: nowrap; }
img { max-width: 100%; }
"""
STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
# A browser runs and loads nothing but this style and the pictures inside the page.
POLICY = f"default-src 'none'; img-src data:; style-src 'sha256-{STYLE_HASH}'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Heading:
    """A heading below the title."""

    text: str
    kind: ClassVar[str] = "heading"


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of text."""

    text: str
    kind: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class Items:
    """A list of texts."""

    texts: Sequence[str]
    kind: ClassVar[str] = "items"


@dataclass(frozen=True)
class Picture:
    """A PNG file, with what it shows in words."""

    path: Path
    about: str
    kind: ClassVar[str] = "picture"


@dataclass(frozen=True)
class Table:
    """A table; every row has as many cells as the head."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    kind: ClassVar[str] = "table"


Block = Heading | Paragraph | Items | Picture | Table


def html_page(title: str, blocks: Sequence[Block]) -> str:
    """A page as HTML; the pictures become part of it."""
    return _render(_HTML, "page.html.jinja", title, blocks, style=Markup(STYLE), policy=Markup(POLICY))


def markdown_page(title: str, blocks: Sequence[Block]) -> str:
    """A page as Markdown; it refers to pictures by their names, beside it."""
    return _render(_MARKDOWN, "page.md.jinja", title, blocks)


def markdown_text(text: object) -> str:
    """Text as Markdown that shows it as it is, in one line, also in a table.

    By entities where renderers disagree about backslashes. An underscore inside a word means nothing.
    """
    entities = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}
    line = " ".join(str(text).split())
    return re.sub(
        r"[\\`*\[\]~$#&<>|]|(?<![^\W_])_|_(?![^\W_])", lambda found: entities.get(found[0], f"\\{found[0]}"), line
    )


def write_text(path: Path, text: str) -> None:
    """Write a file, atomically."""
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


# --- templates ------------------------------------------------------------------------------------------------------


def _environment(**settings: Any) -> Environment:
    loader = PackageLoader("qan_agents", "experiments")
    return Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **settings)


_HTML = _environment(autoescape=True)
_HTML.filters["base64"] = lambda path: base64.b64encode(path.read_bytes()).decode()
_MARKDOWN = _environment(autoescape=False, finalize=markdown_text, keep_trailing_newline=True)
_MARKDOWN.filters["url"] = quote


def _render(environment: Environment, template: str, title: str, blocks: Sequence[Block], **more: str) -> str:
    text = environment.get_template(template).render(title=title, blocks=blocks, **more)
    return text.encode(errors="backslashreplace").decode()  # surrogates, of names of files for example
