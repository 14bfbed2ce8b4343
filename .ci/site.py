"""Hooks of mkdocs.yml: README.md is the first page; links to files outside of docs/ become their text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent


def on_files(files: Files, *, config: Any) -> Files:
    """Add README.md as index.md, with links as they are seen from docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\((?!https?:|docs/|#)([^)]+)\)", r"](../\1)", text).replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn links that lead out of docs/ into plain text: those files are in the repository, not on the site."""
    return re.sub(r"!?\[([^\]]*)\]\(\.\./[^)]*\)", r"\1", markdown)
