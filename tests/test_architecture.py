"""docs/architecture.md names files that exist, and few files lie directly in benchmark/."""

from __future__ import annotations

import re

from benchmark.files import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FILE = re.compile(r"`((?:[a-z_]+/)+(?:[a-z_]+\.\w+)?|[a-z_]+\.py)(?:<\w+>\.\w+)?(?:: \w+)?`")


def test_what_the_page_names_is_there() -> None:
    named = set(FILE.findall(PAGE))
    bases = (ROOT, ROOT / "benchmark", ROOT / "benchmark" / "run" / "engines")
    assert len(named) > 40
    assert [name for name in sorted(named) if not any((base / name).exists() for base in bases)] == []


def test_functions_that_the_page_names_are_there() -> None:
    for file, function in re.findall(r"`([\w/]+\.py): (\w+)`", PAGE):
        assert f"def {function}(" in (ROOT / "benchmark" / file).read_text(encoding="utf-8")


def test_few_files_lie_directly_in_benchmark() -> None:
    assert len(list((ROOT / "benchmark").glob("*.py"))) <= 10
