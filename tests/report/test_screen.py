"""The last screen, at several widths: names stay whole, costs and intervals give way, and it ends with what to do."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from benchmark.report.report import read_report


@pytest.fixture(scope="module")
def report(decided):
    return read_report(decided)


def rendered(report, width, command=""):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(report.console(command))
    return console.export_text()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_names_are_whole_at_every_width_and_no_line_is_longer(report, width):
    text = rendered(report, width)
    lines = text.splitlines()
    for row in report.blocks[0].rows:
        assert any(line.startswith(row.title) for line in lines), row.title
    whole = ("page  ", "next  ")  # to be copied, so they are not broken
    assert all(len(line.rstrip()) <= width for line in lines if not line.startswith(whole))
    # no line holds a part of a name alone
    parts = {row.title[:end] for row in report.blocks[0].rows for end in range(1, len(row.title))}
    assert not parts & {line.strip() for line in lines}


def test_costs_and_intervals_give_way_to_names(report):
    wide, narrow = (rendered(report, width) for width in (120, 40))
    assert re.search(r"CLIP-Adapter +\d+\.\d=? \d+\.\d-", wide)
    assert "step" in wide
    assert "4.61 K" in wide
    assert not re.search(r"\d-\d+\.\d", narrow)
    assert "4.61 K" not in narrow
    assert "CLIP-Adapter" in narrow


def test_the_screen_answers_in_order(report, decided):
    text = rendered(report, 100, "python run_benchmark.py more")
    places = [text.index(part) for part in (
        "Methods against Zero-shot, in how many of 4 columns", "Best of each column", "CLIP-Adapter is better than",
        "Doubts", "next", "python run_benchmark.py more")]  # fmt: skip
    assert places == sorted(places)
    line = next(line for line in text[places[0] :].splitlines() if line.startswith("Full FT"))
    assert re.fullmatch(r"Full FT +2 \(>= \d+\.\d\) +- +2 \(>= \d+\.\d\) +900 K +9\.0 s", line.strip())
    assert "compare clip_adapter zero_shot" in rendered(report, 100)


def test_doubts_are_told_once_and_the_rest_counted(report):
    text = rendered(report, 120)
    assert text.count("one seed only") == 1


def test_the_page_is_named_where_it_was_written(report, tmp_path):
    assert "\npage" not in rendered(report, 80)
    (tmp_path / "index.html").touch()
    assert f"page  {tmp_path / 'index.html'}" in rendered(replace(report, folder=tmp_path), 300)
