"""Every verb that prints tables, at several widths: names stay whole, and no line is longer than the screen."""

from __future__ import annotations

import io
from collections import defaultdict

import pytest
import rich.console

from benchmark import cli
from benchmark.cli import main
from benchmark.config.experiments import experiments
from benchmark.console import Console
from benchmark.efficiency import report as efficiency
from benchmark.layout import Fitted
from benchmark.registry import METHODS

WIDTHS = [60, 80, 120]


@pytest.fixture
def printed(monkeypatch, capsys):
    """Return a function that runs a command on a screen of some width and returns its lines."""

    def run(width, *words):
        console = Console()
        console.out.width = width
        monkeypatch.setattr(cli, "Console", lambda: console)
        assert main([str(word) for word in words]) == 0
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return run


def check(lines, width, names):
    """Each name begins a line, and none is cut in two."""
    for name in names:
        assert any(line == name or line.startswith(f"{name} ") for line in lines), name
    parts = {name[:end] for name in names for end in range(1, len(name))} - set(names)
    assert not parts & {line.strip() for line in lines}
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", WIDTHS)
def test_lists(printed, width):
    check(printed(width, "list", "methods", "--names"), width, METHODS.names())
    check(printed(width, "list", "tables"), width, [one.name for one in experiments()])


@pytest.mark.parametrize("width", WIDTHS)
def test_compare_says_each_column_and_the_sum(printed, decided, width):
    lines = printed(width, "compare", "full_ft", "zero_shot", "--output-dir", decided)
    check([line for line in lines if not line.startswith("In percent")], 1000, ["Wide film set", "Slides"])
    assert max(len(line) for line in lines[:8]) <= width
    said = " ".join(lines)
    assert "full_ft against zero_shot: better in 2 of 4 (by " in said
    assert "worse in 2 of 4 (by " in said
    assert any("A is better" in line for line in lines)


@pytest.mark.parametrize("width", WIDTHS)
def test_report_ends_with_the_answer(printed, decided, width):
    lines = printed(width, "report", "--output-dir", decided, "--formats", "md")
    assert "writing report ..." in lines[:2]
    assert lines[-2].startswith("next  ") or lines[-1].startswith("next  ") or lines[-3].startswith("next  ")
    titles = ["Zero-shot", "CLIP-Adapter", "Full FT", "TaskRes"]
    check([line for line in lines if str(decided) not in line and "/report/" not in line], 1000, titles)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_plan_names_methods_whole(printed, tmp_path, width):
    lines = printed(width, "--methods", "clip_adapter,peft:dora", "--dry-run", "--output-dir", tmp_path)
    check([line for line in lines if line], width, ["clip_adapter", "peft:dora"])


@pytest.mark.parametrize("width", WIDTHS)
def test_validate_has_a_line_per_item_and_ends_with_the_command(printed, width):
    lines = printed(width, "validate", "--methods", "zero_shot", "--suite", "phantom")
    assert "ready" in lines
    assert any(line.startswith("weights: ") for line in lines)
    assert lines[-1].startswith("the run can start: python run_benchmark.py --methods zero_shot")


@pytest.mark.parametrize("width", WIDTHS)
def test_efficiency_names_methods_whole_and_the_cheapest(width):
    keys = [key for columns in (efficiency._COUNTED, efficiency._TIMED) for _, key, _ in columns]
    rows = [
        {"title": title, **dict.fromkeys(keys, number)}
        for title, number in (("Full FT", 3e6), ("CLIP-Adapter", 2.0))
    ]
    found = efficiency.Measured(defaultdict(lambda: 1), rows=rows)
    console = Console()
    console.out = rich.console.Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    efficiency.show(found, console)
    text = console.out.file.getvalue()
    lines = [line.rstrip() for line in text.splitlines()]
    check([line for line in lines if line], width, ["Full FT", "CLIP-Adapter"])
    assert "fewest trained values: CLIP-Adapter (2)" in " ".join(lines)
    assert "no room here for: " in text  # of twelve columns


def test_rows_that_do_not_fit_become_names_with_lines_below():
    table = Fitted.of(
        ("name", "what it says", "n"), [("a long name", "words of some length", "12")], right=["n"]
    )
    console = rich.console.Console(file=io.StringIO(), width=20)
    console.print(table)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert lines == ["a long name", "  what it says:", "  words of some", "  length", "  n: 12"]
