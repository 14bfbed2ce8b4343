"""Tables of datasets: the paper's statements beside what results say."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from benchmark.config.experiments import Experiment, ResolvedRow
from benchmark.report import collect
from benchmark.report.report import read_report
from tests.report.conftest import SUITE, metric, write_report

SPLITS = ("n_classes", "total_size", "train_pct", "val_pct", "test_pct")
SIZES = Experiment("A.1", "datasets", "Datasets", tasks={"zeroshot": SPLITS, "segmentation": SPLITS})
ROWS = [
    ResolvedRow("classification", "classification", "toy", "tiny", task="zeroshot"),
    ResolvedRow("segmentation", "segmentation", "toy", "tiny", task="segmentation"),
]
COMPARABLE: dict[str, Any] = copy.deepcopy(SUITE)
COMPARABLE["paper"] |= {"comparable": True, "table_4": {"SIIM": "siim"}, "validation": "NIH-ChestXray14"}
COMPARABLE["tasks"]["zeroshot"]["datasets"]["rsna"]["classes"] = ["No Finding", "Pneumonia"]
COMPARABLE["tasks"]["segmentation"] = {"datasets": {"siim": {"title": "SIIM"}}}
COMPARABLE["validation"] |= {"task": "zeroshot", "title": "NIH", "classes": list("abcdefghijklmn")}


@pytest.fixture(autouse=True)
def _alone(monkeypatch, choose_experiments):
    choose_experiments((SIZES, ROWS))
    monkeypatch.setattr(collect, "method_titles", lambda name: (name, name))


@pytest.fixture
def store(tmp_path, write_cell):
    cell = write_cell("zero_shot", suite=COMPARABLE)
    images = {"train": 60, "val": 20, "test": 20}
    dense = {"siim": {"n": 20, "metrics": {"dice": metric(0.4)}, "info": {"images": images}}}
    cell.write_json("segmentation.json", {"task": "segmentation", "status": "success", "datasets": dense})
    return tmp_path


def test_what_the_paper_states_stands_beside_what_results_say(store):
    frame = read_report(store, tables=["A1"]).frames()["A.1"].set_index("dataset")
    rsna = frame.loc["RSNA (zeroshot)"]
    assert (rsna["n_classes_paper"], rsna["n_classes"], rsna["n_classes_difference"]) == (2, 2, 0)
    assert (rsna["total_size_paper"], rsna["test_pct_paper"], rsna["n"]) == (29_684, 15, 1000)
    assert rsna["classes"] == "No Finding; Pneumonia"
    siim = frame.loc["SIIM (segmentation)"]
    assert (siim["total_size"], siim["train_pct"], siim["test_pct_difference"]) == (100, 60, 5)
    validation = frame.loc["NIH (validation)"]
    assert (validation["n_classes_paper"], validation["n_classes"], validation["val_pct_paper"]) == (
        14,
        14,
        5,
    )


def test_datasets_of_the_paper_without_a_counterpart_keep_their_row(store):
    frame = read_report(store, tables=["A1"]).frames()["A.1"].set_index("dataset")
    assert frame.loc["MHIST (zeroshot)", "total_size_paper"] == 3152
    assert frame["total_size_paper"].notna().sum() == 8


def test_all_formats_and_not_by_default(store):
    names = {path.name for path in write_report(store, tables=["all"], formats=["md", "tex", "csv"])}
    assert {"table_A1.md", "table_A1.tex", "table_A1.csv"} <= names
    text = (store / "report" / "table_A1.md").read_text()
    assert "### Table A.1: Datasets. Toy suite" in text
    assert "| RSNA (zeroshot) | 2 | 2 | +0 | 29684 | - |" in text
    assert r"\multicolumn{3}{c}{validation [\%]}" in (store / "report" / "table_A1.tex").read_text()
    assert [item.table for item in read_report(store).rendered] == ["1"]


def test_differences_need_the_papers_data(tmp_path, write_cell):
    write_cell("zero_shot")
    (found,) = [item for item in read_report(tmp_path, tables=["A1"]).rendered if item.table == "A.1"]
    heads = [(column.group, column.head) for column in found.columns]
    row = next(cells for cells in found.rows if cells[0].text == "RSNA (zeroshot)")
    assert row[heads.index(("images", "paper"))].text == "29684"
    assert row[heads.index(("classes", "difference"))].text == ""
    assert found.caption.endswith("Differences are blank: the images are generated.")
