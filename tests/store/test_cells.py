"""Files are whole or absent, stay inside their folder, and newer ones are refused by name."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from benchmark.errors import StoreError
from benchmark.files import csv_cell, file_lock, write_whole
from benchmark.store.cells import RESULT_COLUMNS, CellFolder, Store, UnreadableError


@pytest.fixture
def cell(tmp_path):
    return Store(tmp_path).cell("runs/s/b/m/seed-0")


def finished(store, method="m", seed=0, value=0.25):
    cell = store.cell(f"runs/s/b/{method}/seed-{seed}")
    cell.write_config({"suite_name": "s", "backbone": "b", "method": method, "seed": seed, "adapt_hash": "h"})
    score = {"value": value, "ci_low": None, "ci_high": 0.5, "n": 8}
    datasets = {"rsna": {"n": 8, "metrics": {"acc": score}}}
    cell.write_json("zeroshot.json", {"status": "success", "task_hash": "t", "datasets": datasets})
    return cell


def test_json_round_trip_turns_numbers_plain(cell):
    cell.write_json(
        "x.json", {"a": np.float64(0.1), "b": [np.int64(3)], "c": float("nan"), "d": np.arange(2)}
    )
    assert cell.read_json("x.json") == {"schema_version": 1, "a": 0.1, "b": [3], "c": None, "d": [0, 1]}


def test_arrays_and_history_round_trip(cell):
    cell.write_npz("predictions/t-d.npz", {"score": np.array([0.5, 1.5]), "id": np.array(["a", "b"])})
    arrays = cell.read_npz("predictions/t-d.npz")
    assert arrays["score"].tolist() == [0.5, 1.5]
    assert arrays["id"].tolist() == ["a", "b"]
    cell.write_history([{"epoch": 1}, {"epoch": 2, "lr": 1e-3}])
    assert cell.read_history() == [{"epoch": 1}, {"epoch": 2, "lr": 1e-3}]


@pytest.mark.parametrize("name", ["../x.json", "/tmp/x.json", "a/../../x", ""])
def test_names_cannot_leave_the_cell(cell, name):
    with pytest.raises(StoreError, match="not a name inside"):
        cell.inside(name)


def test_interrupted_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "x.txt"
    target.write_text("old")

    def half(path):
        path.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(target, half)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


def test_newer_schema_is_refused_by_name(cell):
    cell.write_json("x.json", {"schema_version": 2})
    with pytest.raises(StoreError, match=r"x\.json: written by a newer version \(schema 2"):
        cell.read_json("x.json")


def test_damaged_file_is_told_from_a_newer_one(cell):
    cell.write_json("x.json", {})
    cell.inside("x.json").write_text('{"a":')
    with pytest.raises(UnreadableError, match=r"x\.json: damaged"):
        cell.read_json("x.json")


def test_results_csv_is_tidy_and_sorted(tmp_path):
    store = Store(tmp_path)
    for seed in (10, 2):
        finished(store, seed=seed)
    finished(store, method="a", value=1 / 3)
    assert store.rebuild_results_csv() == []
    rows = list(csv.reader((tmp_path / "results.csv").read_text().splitlines()))
    assert rows[0] == list(RESULT_COLUMNS)
    assert [row[2:4] for row in rows[1:]] == [["a", "0"], ["m", "2"], ["m", "10"]]
    assert rows[1] == [
        "s",
        "b",
        "a",
        "0",
        "zeroshot",
        "rsna",
        "acc",
        repr(1 / 3),
        "",
        "0.5",
        "8",
        "success",
        "t",
        "",
        "",
        "",
        "",
    ]


def test_results_csv_leaves_out_bad_files_by_name(tmp_path):
    store = Store(tmp_path)
    finished(store)
    newer = finished(store, method="newer")
    newer.inside("zeroshot.json").write_text(json.dumps({"schema_version": 9}))
    finished(store, method="torn").inside("zeroshot.json").write_text("{")
    problems = store.rebuild_results_csv()
    assert len(problems) == 2
    assert "newer" in problems[0]
    assert "torn" in problems[1]
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 2


def test_a_second_holder_of_a_cell_is_turned_away(cell):
    with cell.lock() as first, CellFolder(cell.path).lock() as second:
        assert (first, second) == (True, False)
    with cell.lock() as again:
        assert again


def test_waiting_lock_is_free_after_its_holder(tmp_path):
    with file_lock(tmp_path / ".lock", wait=False) as held:
        assert held
    with file_lock(tmp_path / ".lock", wait=True) as held:
        assert held


def test_clear_empties_the_cell(cell):
    cell.write_json("a.json", {})
    cell.write_npz("predictions/x.npz", {"a": np.zeros(1)})
    cell.clear()
    assert list(cell.path.iterdir()) == []


def test_unwritable_output_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"--output-dir: '.*file/out' cannot be written \(Not a directory\)"):
        Store(tmp_path / "file" / "out").check_writable()


def test_texts_that_a_spreadsheet_would_compute_are_quoted_in_csv():
    cells = ["=1+1", "+cmd", "-x", "@a", "\tb", "-0.5", "+3", "1e-3", "-", "a=b", -2.0, None]
    quoted = ["'=1+1", "'+cmd", "'-x", "'@a", "'\tb", *cells[5:]]
    assert [csv_cell(cell) for cell in cells] == quoted
