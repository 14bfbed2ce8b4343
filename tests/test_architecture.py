"""docs/architecture.md names files and folders that are there, and benchmark/ keeps its files in rooms."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMED = sorted(
    set(re.findall(r"`((?:benchmark|methods|tasks|configs|run|cli|store|backbones|data)/[\w/.<>]*)", PAGE))
)


@pytest.mark.parametrize("name", NAMED)
def test_what_the_page_names_is_there(name: str) -> None:
    whole = name.partition("<")[0] if "<" in name else name
    assert (ROOT / whole).exists() or (ROOT / "benchmark" / whole).exists(), name


def test_few_files_lie_directly_in_benchmark() -> None:
    assert len(list((ROOT / "benchmark").glob("*.py"))) <= 10
