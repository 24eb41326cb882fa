"""The metadata hook of hatchling: project URLs, and a README whose links work outside the repository.

Both follow from one setting in pyproject.toml, the URL of the repository:

    [tool.hatch.metadata.hooks.custom]
    repository = "..."
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

# Up to where a relative path begins.
PICTURE = re.compile(r'(!\[[^]]*\]\(|\bsrc(?:set)?=")(?![a-z]+:)')
LINK = re.compile(r'((?<!!)\[(?:[^][]|\[[^]]*\])*\]\(|\bhref=")(?![a-z]+:|#)')
CODE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


class RepositoryHook(MetadataHookInterface):
    """Fills in `urls` and `readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """See hatchling's `MetadataHookInterface`; metadata is changed in place."""
        repository = self.config["repository"].rstrip("/")
        metadata["urls"] = {
            "Source": repository,
            "Documentation": f"{repository}/blob/HEAD/docs/index.md",
            "Changelog": f"{repository}/blob/HEAD/CHANGELOG.md",
            "Issues": f"{repository}/issues",
        }
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": with_absolute_links(text, repository)}


def with_absolute_links(text: str, repository: str) -> str:
    """Markdown whose relative links lead into a repository: pictures to the file itself, others to its page."""
    parts = CODE.split(text)
    for place in range(0, len(parts), 2):  # between the blocks of code
        pictures = PICTURE.sub(rf"\g<1>{repository}/raw/HEAD/", parts[place])
        parts[place] = LINK.sub(rf"\g<1>{repository}/blob/HEAD/", pictures)
    return "".join(parts)
