"""Doubts: one list of what makes a table's numbers doubtful, on the last screen, below the table and on the page."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmark.report.model import Doubt
from benchmark.report.report import read_report

PAIRS = "corpus 'toy': the frozen model likes its pairs no more than permuted ones (p = 0.51)"


pytestmark = pytest.mark.usefixtures("plain_titles")


def doubts_of(folder: Path) -> tuple[Doubt, ...]:
    (found,) = read_report(folder).rendered
    return found.doubts


def lines_of(folder: Path, kind: str) -> list[str]:
    return [str(doubt) for doubt in doubts_of(folder) if doubt.kind == kind]


def test_the_doubts_of_a_run_are_on_the_last_screen_below_the_table_and_on_the_page(tmp_path, write_cell):
    write_cell("zero_shot", 0, (0.35, 0.30), parameters=0)
    cell = write_cell("coop", 0, (0.50, 0.52), limit=64, data_notes=[PAIRS, "3 films could not be read"])
    result = cell.read_json("zeroshot.json")
    result["datasets"]["rsna"]["info"] = {
        "classes": ["none", "pneumonia"],
        "data_notes": ["AUROC over 1 of 2 classes (a: no image has it)"],
        "overlaps": [
            {"seen": seen, "leak": leak, "text": f"{count} of 64 images are near copies"}
            for count, seen, leak in ((3, True, False), (4, False, False), (5, True, True))
        ],
    }
    cell.write_json("zeroshot.json", result)
    report = read_report(tmp_path)
    lines = [
        f"{PAIRS}.",
        "Corpus: 3 films could not be read.",
        "RSNA: AUROC over 1 of 2 classes (a: no image has it).",
        "RSNA: 3 of 64 images are near copies.",  # of other test sets they may be, and leaks are notes already
        "zero_shot: worse than chance on CheXpert 5x200 AUROC (50.0), RSNA ACC (50.0), RSNA AUROC (50.0).",
        "coop: no better than chance on CheXpert 5x200 AUROC (50.0).",
        "coop: limited to 64 samples: not comparable, not ranked.",
        "coop: one seed only, so nothing is known of the spread over seeds.",
    ]
    screen = Console(width=300, file=io.StringIO())
    screen.print(report.console())
    report.write(["md", "tex", "html"])
    folder = report.folder
    for text in (
        screen.file.getvalue(),
        (folder / "table_1.md").read_text().replace("\\", ""),
        (folder / "table_1.tex").read_text().replace("\\", ""),
        (folder / "index.html").read_text().replace("&#39;", "'"),
    ):
        missing = [line for line in lines if line not in text]
        assert not missing


@pytest.mark.parametrize(
    ("acc", "auroc", "kind", "words"),
    [
        (0.60, 0.50, "at chance", "no better than chance on CheXpert 5x200 AUROC (50.0)"),
        (0.60, 0.525, "at chance", "no better than chance on CheXpert 5x200 AUROC (50.0)"),  # interval from 0.495
        (0.60, 0.40, "worse than chance", "worse than chance on CheXpert 5x200 AUROC (50.0)"),
        (0.22, 0.70, "at chance", "no better than 'Always the most frequent class' on CheXpert 5x200 ACC (20.0)"),
        (0.24, 0.70, "", ""),
    ],
)  # fmt: skip
def test_a_score_must_beat_what_guessing_or_a_constant_answer_gets(
    tmp_path, write_cell, acc, auroc, kind, words
):
    suite: dict[str, Any] = {"name": "own", "tasks": {"zeroshot": {"datasets": {
        "chexpert_5x200": {"title": "CheXpert 5x200"}}}}}  # fmt: skip
    for name in ("coop", "mma"):
        cell = write_cell(name, 0, (acc, auroc), suite=suite)
        result = cell.read_json("zeroshot.json")
        del result["datasets"]["rsna"]
        cell.write_json("zeroshot.json", result)
    found = [(one.kind, str(one)) for one in doubts_of(tmp_path) if "chance" in one.kind]
    assert found == ([(kind, f"coop, mma: {words}.")] if kind else [])


def test_rows_in_another_arithmetic_are_named_and_still_compared(tmp_path, write_cell):
    for name in ("zero_shot", "coop", "mma"):
        write_cell(name, made={"arithmetic": "bf16"} if name == "mma" else {})
    assert lines_of(tmp_path, "arithmetic") == ["mma: computed in bf16, the others in fp32."]
    (found,) = read_report(tmp_path).rendered
    assert not any(cell.apart for row in found.rows for cell in row)
