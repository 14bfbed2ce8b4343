"""Tables of experiments: rows from resolve, what is missing and why, differences, parts on and off, ties."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from benchmark.config.experiments import Experiment, ResolvedRow, experiments
from benchmark.report import collect
from benchmark.report.paper import load_paper
from benchmark.report.report import read_report
from benchmark.report.tables.table import Table
from tests.report.conftest import COMPARABLE, shown, write_report

ACC = "CheXpert 5x200 ACC [%], n = 1000"


def row(title: str, method: str = "", paper_row: str = "", **more: Any) -> ResolvedRow:
    place = {"suite_name": "toy", "backbone": "tiny"} | more
    return ResolvedRow(title, paper_row, place.pop("suite_name"), place.pop("backbone"), method, **place)


PARTS = Experiment(
    "5", "table", "Components", tasks={"zeroshot": ("acc",)}, source="configs/experiments/table_5.yaml"
)
PART_ROWS = [
    row("none", "zero_shot", "LoRA=0;ACE-HGNN=0;label=0"),
    row("LoRA", "ace_lora", "LoRA=1;ACE-HGNN=0;label=0", variant="recipe.loss=clip"),
    row("all", "ace_lora", "LoRA=1;ACE-HGNN=1;label=1"),
]


@pytest.fixture(autouse=True)
def _titles(monkeypatch):
    monkeypatch.setattr(collect, "method_titles", lambda name: (name, name))


def table(tmp_path: Path, name: str) -> Table:
    (found,) = [item for item in read_report(tmp_path, tables=[name]).rendered if item.table == name]
    return found


def test_variants_are_rows_of_experiments_and_never_of_the_main_table(
    tmp_path, write_cell, choose_experiments
):
    choose_experiments((PARTS, PART_ROWS))
    write_cell("zero_shot", 0, (0.35, 0.7), parameters=0)
    write_cell("ace_lora", 0, (0.5, 0.8))
    write_cell("ace_lora", 0, (0.45, 0.75), variant="recipe.loss=clip")
    report = read_report(tmp_path)
    main, parts = report.rendered
    assert [cells[0].text for cells in main.rows] == ["ace_lora", "zero_shot"]
    assert [item.cell for item in report.blocks[0].variants] == ["ace_lora+recipe.loss=clip"]
    assert parts.heading == "Table 5: Components. Toy suite, backbone tiny"
    assert shown(parts, ACC) == {
        "none": "35.0", "LoRA": "45.0", "all": "50.0", "Always the most frequent class": "20.0"
    }  # fmt: skip
    assert shown(parts, "ACE-HGNN") | {"Always the most frequent class": ""} == {
        "none": "no", "LoRA": "no", "all": "yes", "Always the most frequent class": ""
    }  # fmt: skip
    frame = report.frames()["5"].set_index("title")
    assert frame.loc["LoRA", "variant"] == "recipe.loss=clip"
    assert frame.loc["LoRA", "label"] == "no"
    assert "chexpert_5x200_auroc" not in frame


def test_rows_that_were_not_run_say_so_and_name_the_command(tmp_path, write_cell, choose_experiments):
    choose_experiments(
        (PARTS, [*PART_ROWS, row("other", "zero_shot", backbone="huge", reason="no such backbone")])
    )
    for seed in (0, 1):
        write_cell("ace_lora", seed, (0.5, 0.8))
    assert [item.table for item in read_report(tmp_path).rendered] == ["1"]
    parts = table(tmp_path, "5")
    found = shown(parts, ACC)
    assert (found["LoRA*"], found["all"], found["other*"]) == ("not run", "50.0", "-")
    command = "python run_benchmark.py --config configs/experiments/table_5.yaml --suite toy"
    assert f"Not run: none, LoRA. To run them: {command} --backbone tiny --seeds 0,1" in parts.notes
    assert "other: no such backbone." in parts.notes
    frame = read_report(tmp_path, tables=["5"]).frames()["5"].set_index("title")
    assert frame.loc["LoRA", "kind"] == "not run"
    assert frame.loc["other", "notes"] == "no such backbone"
    assert frame.loc["other", "backbone"] == "huge"


def test_the_main_table_keeps_the_papers_rows_in_its_order(
    tmp_path, write_cell, choose_experiments, monkeypatch
):
    titles = {"coop": "CoOp", "ace_lora": "ACE-LoRA", "mine": "Mine"}
    for module in ("collect", "experiment_tables"):
        monkeypatch.setattr(f"benchmark.report.{module}.method_titles", lambda name: (titles[name],) * 2)
    main = Experiment("1", "table", tasks={"zeroshot": ("acc",)}, source="configs/experiments/table_1.yaml")
    choose_experiments((main, [row("a", "ace_lora", "ACE-LoRA"), row("b", "coop", "CoOp")]))
    write_cell("mine")
    write_cell("ace_lora")
    (found,) = read_report(tmp_path).rendered
    assert [cells[0].text for cells in found.rows] == ["CoOp*", "ACE-LoRA", "Mine"]
    assert any(note.startswith("Not run: CoOp. To run them: python run_benchmark.py") for note in found.notes)


def test_a_gain_is_the_difference_of_two_rows_and_stands_beside_the_papers(
    tmp_path, write_cell, choose_experiments
):
    gain = "BMC-CLIP + ACE-LoRA minus BMC-CLIP"
    rows = [
        row("before", "zero_shot", "BMC-CLIP", backbone="other"),
        row("after", "ace_lora", "BMC-CLIP + ACE-LoRA", backbone="other"),
        row("gain", "", gain, backbone="other", difference=("after", "before")),
    ]
    choose_experiments((Experiment("8", "table", "Another", tasks={"zeroshot": ("acc",)}), rows))
    write_cell("zero_shot", 0, (0.25, 0.6), suite=COMPARABLE, backbone="other")
    write_cell("ace_lora", 0, (0.5, 0.7), suite=COMPARABLE, backbone="other")
    write_cell("ace_lora", 0, (0.9, 0.9), suite=COMPARABLE)
    found = table(tmp_path, "8")
    assert found.heading.endswith("backbone other")
    assert shown(found, ACC)["gain"] == "+25.0"
    assert shown(found, "CheXpert 5x200 ACC paper [%], n = 1000")["gain"] == "+25.80"
    assert shown(found, "CheXpert 5x200 ACC difference [points], n = 1000") == {
        "before": "+0.3", "after": "-0.5", "gain": "-0.8", "Always the most frequent class": ""
    }  # fmt: skip
    assert found.rows[2][2].rank == ""
    frame = read_report(tmp_path, tables=["8"]).frames()["8"].set_index("title")
    assert frame.loc["gain", "chexpert_5x200_acc"] == pytest.approx(0.25)
    assert frame.loc["gain", "chexpert_5x200_acc_paper"] == pytest.approx(0.258)
    assert frame.loc["gain", "kind"] == "difference"


def test_a_task_that_the_paper_has_as_a_row_takes_that_rows_number(tmp_path, write_cell, choose_experiments):
    tasks = {"zeroshot": ("acc",), "transclip": ("acc",)}
    choose_experiments(
        (Experiment("A.4", "table", "T", tasks=tasks), [row("frozen", "zero_shot", "BiomedCLIP")])
    )
    cell = write_cell("zero_shot", 0, (0.35, 0.7), suite=COMPARABLE, parameters=0)
    assert [item.table for item in read_report(tmp_path).rendered] == ["1"]
    unfinished = table(tmp_path, "A.4")
    assert shown(unfinished, "RSNA transclip ACC [%], n = ?")["frozen"] == "not run"
    assert any(note.startswith("Not run: frozen (transclip). To run them") for note in unfinished.notes)
    result = cell.read_json("zeroshot.json") | {"task": "transclip"}
    cell.write_json("transclip.json", result)
    main, found = read_report(tmp_path).rendered
    assert shown(found, "RSNA ACC paper [%], n = 1000")["frozen"] == "74.34"
    assert shown(found, "RSNA transclip ACC paper [%], n = 1000")["frozen"] == "73.54"
    assert "RSNA transclip ACC paper [%], n = 1000" not in [column.full for column in main.columns]


def test_tables_of_related_suites_have_their_columns_and_repeats_are_left_out(
    tmp_path, write_cell, choose_experiments
):
    tissue: dict[str, Any] = {
        "name": "tissue",
        "title": "Tissue",
        "tasks": {"zeroshot": {"datasets": {"rsna": {"title": "Slides"}}}},
    }
    rows = [row("frozen", "zero_shot", "BiomedCLIP", suite_name="tissue")]
    choose_experiments((Experiment("3", "table", "Histology", tasks={"zeroshot": ("acc",)}), rows))
    write_cell("zero_shot", 0, (0.35, 0.7))
    write_cell("zero_shot", 0, (0.25, 0.6), suite=tissue)
    found = table(tmp_path, "3")
    assert found.heading.startswith("Table 3: Histology. Tissue")
    assert shown(found, "Slides ACC [%], n = 1000")["frozen"] == "35.0"
    assert [item.table for item in read_report(tmp_path, suite="toy").rendered] == ["1", "3"]


def test_ties_are_marked_in_every_format_and_explained(tmp_path, write_cell, choose_experiments, monkeypatch):
    choose_experiments()
    key = ("zeroshot", "rsna", "acc")
    tests = SimpleNamespace(
        keys=(key,),
        tied_with_best=lambda _: {"ace_lora", "coop"},
        against_baseline={("coop", key): SimpleNamespace(difference=0.03, p_adjusted=0.04, verdict="better")},
    )
    monkeypatch.setattr("benchmark.report.tables.render.block_tests", lambda block: tests)
    words = "benchmark.report.tables.render"
    monkeypatch.setattr(f"{words}.sentences", lambda tests, keys: ["CoOp is better than zero-shot."])
    write_cell("ace_lora", 0, (0.50, 0.8))
    write_cell("coop", 0, (0.49, 0.7))
    write_cell("zero_shot", 0, (0.40, 0.7))
    write_report(tmp_path, formats=["md", "tex", "csv"])
    folder = tmp_path / "report"
    markdown, tex = (folder / "table_1.md").read_text(), (folder / "table_1.tex").read_text()
    assert "| <u>59.0</u>= [56.0, 62.0] |" in markdown
    assert "| **60.0** [57.0, 63.0] |" in markdown
    assert "'=' after a number: tied with the best" in markdown
    assert "#### Which differences matter\n\n- CoOp is better than zero-shot." in markdown
    assert r"\underline{59.0}$=$ {\scriptsize [56.0, 62.0]}" in tex
    frame = pd.read_csv(folder / "table_1.csv").set_index("method")
    assert frame.loc["coop", "rsna_acc_baseline_p"] == 0.04
    assert frame.loc["coop", "rsna_acc_baseline_verdict"] == "better"
    assert (frame["smallest_difference"].dropna() == 0.005).all()
    assert frame.loc["coop", "rsna_acc_tied_with_best"]
    assert not frame.loc["zero_shot", "rsna_acc_tied_with_best"]


def test_all_tables_of_the_paper_are_written_measured_or_not(tmp_path, write_cell):
    write_cell("zero_shot", 0, (0.35, 0.7), parameters=0)
    written = {path.name for path in write_report(tmp_path, tables=["all"], formats=["csv", "md", "tex"])}
    names = [*map(str, range(1, 9)), "A1", "A2", "A3", "A4", "long", "medct_vlm"]
    assert written == {
        "efficiency.csv",
        *(f"table_{name}.{kind}" for name in names for kind in ("csv", "md", "tex")),
    }
    first = {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()}
    shutil.rmtree(tmp_path / "report")
    write_report(tmp_path, tables=["a1", "A.3", "5"], formats=["md"])
    again = {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()}
    assert again == {name: first[name] for name in ("table_A1.md", "table_A3.md", "table_5.md")}
    text = (tmp_path / "report" / "table_A3.md").read_text()
    assert "### Table A.3: Placement of the hypergraph. Toy suite" in text
    assert "| neither tower\\* | no | no |" in text


def test_curves_are_blocks_for_figures(tmp_path, write_cell, choose_experiments):
    points = [row("topk = 3", "ace_lora", variant="topk=3", value=3), row("topk = 5", "ace_lora", value=5)]
    choose_experiments((Experiment("A.2", "curve", tasks={"zeroshot": ("acc",)}, option="topk"), points))
    write_cell("ace_lora", 0, (0.5, 0.8))
    write_cell("ace_lora", 0, (0.4, 0.8), variant="topk=3")
    report = read_report(tmp_path, tables=["all"])
    assert [found.table for found in report.rendered] == ["1"]
    (curve,) = report.curves
    assert [(one.cell, one.variant) for one in curve.rows] == [
        ("ace_lora+topk=3", "topk=3"),
        ("ace_lora", ""),
    ]


def test_the_projects_experiments_hold_every_row_of_the_papers_tables():
    paper = load_paper()
    for one in experiments():
        if one.kind == "table":
            named = list(dict.fromkeys(item.paper_row for item in one.rows))  # a model may have two forms
            assert named[: len(paper.methods(one.id))] == [
                name for name in paper.methods(one.id) if name.lower() not in one.tasks
            ], one.label
