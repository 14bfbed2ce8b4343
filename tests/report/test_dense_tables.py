"""Columns of dense tasks in the main table: beside zero-shot's, with references, the paper's row and shared results."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmark.report.collect import collect_blocks
from benchmark.report.paper import load_paper
from benchmark.report.report import read_report
from benchmark.report.tables.formats import latex, markdown
from benchmark.report.tables.render import render_block
from tests.report.conftest import SUITE, metric

DENSE: dict[str, Any] = SUITE | {
    "tasks": SUITE["tasks"] | {"segmentation": {"datasets": {"siim": {"title": "SIIM"}}}},
    "paper": SUITE["paper"] | {"table_4": {"SIIM": "siim", "RSNA": "rsna"}, "comparable": True},
}


@pytest.fixture
def block(write_cell, tmp_path: Path):
    for number, method in enumerate(("zero_shot", "coop", "ace_lora")):
        cell = write_cell(method, suite=DENSE)
        metrics = {
            "dice": metric(0.4 + 0.1 * (number == 2)),
            "dice_pooled": metric(0.5),
            "iou": metric(0.3),
            "dice_trivial": metric(0.21),
            "dice_untrained": metric(0.33),
        }
        result = {
            "task": "segmentation",
            "status": "success",
            "datasets": {"siim": {"n": 9, "metrics": metrics}},
        }
        cell.write_json(
            "segmentation.json", result | ({"shared": "frozen image tower"} if number < 2 else {})
        )
    (found,) = collect_blocks(tmp_path, load_paper())
    return found


def test_dice_stands_beside_zero_shot_and_the_papers_table_4(block):
    rendered = render_block(block, load_paper())
    heads = [column.full.removesuffix(", n = 1000") for column in rendered.columns]
    at = heads.index("SIIM segmentation Dice [%]")
    assert heads[at - 1 : at + 4] == [
        "SIIM segmentation Dice paper [%]",
        "SIIM segmentation Dice [%]",
        "SIIM segmentation Dice difference [points]",
        "SIIM segmentation pooled Dice [%]",
        "SIIM segmentation IoU [%]",
    ]
    assert at > heads.index("RSNA AUROC [%]")
    rows = {row[0].text: row for row in (*rendered.rows, *rendered.references)}
    assert (rows["ACE-LoRA"][at].text, rows["ACE-LoRA"][at].rank) == ("50.0", "best")
    assert [rows["ACE-LoRA"][at + step].text for step in (-1, 1)] == ["46.34", "+3.7"]
    assert rows["CoOp"][at].spread == "(s)"
    assert [rows["CoOp"][at + step].text for step in (-1, 1)] == ["", ""]
    assert rows["ACE-LoRA"][at].spread == ""
    assert rows["One answer for every image"][at].text == "21.0"
    assert rows["Untrained image tower"][at].text == "33.0"
    assert rows["Untrained image tower"][at + 2].text == ""
    assert rows["Always the most frequent class"][at].text == ""
    assert "Tables 1 and 4" in rendered.caption
    (note,) = [line for line in rendered.notes if line.startswith("(s)")]
    assert "CoOp" in note
    assert "share one segmentation result" in note
    assert "(s)" in markdown([rendered])
    assert "(s)" in latex([rendered])


def test_files_name_the_task_where_it_is_not_zero_shot(block, tmp_path):
    frame = read_report(tmp_path).frames()["1"].set_index("method")
    assert frame.loc["ace_lora", "segmentation_siim_dice"] == pytest.approx(0.5)
    assert frame.loc["ace_lora", "segmentation_siim_dice_paper"] == pytest.approx(0.4634)
    assert frame.loc["ace_lora", "chexpert_5x200_acc"] == pytest.approx(0.4)
    assert not [name for name in frame.columns if "map" in name.split("_")]


def test_tasks_of_later_runs_keep_their_titles(write_cell, tmp_path: Path):
    cell = write_cell("zero_shot")
    cell.write_config({**cell.read_config(), "tasks": DENSE["tasks"]})
    (block,) = collect_blocks(tmp_path, load_paper())
    assert block.dataset_title("siim", "segmentation") == "SIIM"


def test_the_final_screen_shows_dice(block, tmp_path: Path):
    console = Console(width=200, record=True, file=StringIO())
    console.print(read_report(tmp_path).console())
    assert "Dice" in console.export_text()
