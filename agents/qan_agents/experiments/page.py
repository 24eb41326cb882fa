"""Self-contained HTML pages: Markdown and its pictures in one file."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from markdown import markdown

from qan_gym.utils.files import write_aside

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid #8886; text-align: left; vertical-align: top; }
td { white-space: nowrap; }
img { max-width: 100%; background: white; }
"""


def as_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)) + "\n"


def page(title: str, text: str, folder: Path) -> str:
    """An HTML page.

    Args:
        title: of the page.
        text: its content, Markdown.
        folder: of the PNG files that the text refers to by name; they become part of the page.
    """
    body = markdown(text, extensions=["tables"])
    for picture in folder.glob("*.png"):
        data = base64.b64encode(picture.read_bytes()).decode()
        body = body.replace(f'src="{html.escape(picture.name)}"', f'src="data:image/png;base64,{data}"')
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body>{body}</body></html>\n"
    )


def write_text(path: Path, text: str) -> None:
    """Write a file, atomically."""
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
