"""Honesty: limits, failures, mixed recipes, one seed and uncommitted changes are named in every table."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.metrics.classification import Metric
from benchmark.report.report import read_report
from benchmark.report.significance.wording import step_text, three_digits
from benchmark.report.tables.table import parameters_text

RECIPE = {"epochs": 40, "batch_size": 64, "lr": 0.001, "loss": "label_guided", "log_every": 20}


pytestmark = pytest.mark.usefixtures("plain_titles")


def notes(tmp_path: Path) -> list[str]:
    (found,) = read_report(tmp_path).rendered
    return list(found.notes)


def test_recipes_that_differ_are_named_but_learning_rates_stand_in_the_caption(tmp_path, write_cell):
    write_cell("coop", recipe=RECIPE)
    write_cell("mma", recipe={**RECIPE, "lr": 0.01, "log_every": 5})
    write_cell("full_ft", recipe={**RECIPE, "epochs": 10, "loss": "clip"})
    write_cell("zero_shot", recipe={**RECIPE, "epochs": 3}, parameters=0)
    (found,) = read_report(tmp_path).rendered
    assert "Mixed recipes: epochs 40, but 10 (full_ft); loss label_guided, but clip (full_ft)." in found.notes
    assert "Learning rates: 0.001 coop, full_ft; 0.01 mma." in found.caption


def test_recipes_that_differ_in_the_learning_rate_alone_are_not_mixed(tmp_path, write_cell):
    write_cell("coop", recipe=RECIPE)
    write_cell("mma", recipe={**RECIPE, "lr": 0.01})
    assert not [note for note in notes(tmp_path) if note.startswith("Mixed")]


def test_one_seed_is_named_where_something_is_trained(tmp_path, write_cell):
    write_cell("zero_shot", parameters=0)
    write_cell("coop")
    write_cell("mma", 0)
    write_cell("mma", 1)
    (found,) = read_report(tmp_path).rendered
    assert [one.subject for one in found.doubts if one.kind == "one seed"] == ["coop"]


def test_marks_of_rows_are_in_the_csv(tmp_path, write_cell):
    write_cell("coop", limit=64, dirty=True)
    write_cell("mma", 0)
    write_cell("mma", 1, None, status="failed", error="no")
    write_cell("taskres", 0)
    write_cell("taskres", 1)
    marks = read_report(tmp_path).frames()["1"].set_index("method")["marks"]
    assert marks["coop"] == "limited; one seed; uncommitted changes"
    assert marks["mma"] == "failed; one seed"
    assert marks["taskres"] == ""


def test_the_count_of_samples_is_that_of_whole_runs(tmp_path, write_cell):
    write_cell("mma")
    cell = write_cell("coop", limit=64)
    result = cell.read_json("zeroshot.json")
    for score in result["datasets"]["rsna"]["metrics"].values():
        score["n"] = 64
    cell.write_json("zeroshot.json", result)
    (found,) = read_report(tmp_path).rendered
    assert "RSNA ACC [%], n = 1000" in [column.full for column in found.columns]
    cell = write_cell("mma", status="failed")
    (found,) = read_report(tmp_path).rendered
    assert "RSNA ACC [%], n = 64" in [column.full for column in found.columns]


def test_numbers_are_short_and_keep_three_digits():
    values = (None, 0, 77, 2049, 35_000, 969_217, 3_550_000, 195_900_000)
    assert [parameters_text(value) for value in values] == [
        "-", "0", "77", "2.05 K", "35.0 K", "969 K", "3.55 M", "196 M"
    ]  # fmt: skip
    numbers = (0, 0.0123, 0.5, 1.5, 12.34, 969.2, 4003)
    assert [three_digits(value) for value in numbers] == [
        "0",
        "0.0123",
        "0.500",
        "1.50",
        "12.3",
        "969",
        "4003",
    ]
    share, loss = Metric("acc"), Metric("log_loss", unit="nats", higher=False)
    assert [share.signed(value) for value in (None, 0.0123, -0.2)] == ["", "+1.2", "-20.0"]
    assert [share.text(None), share.text(0.4123), loss.text(0.4123)] == ["-", "41.2", "0.41"]
    assert Metric.of_stored("log_loss", {**loss.stored(), "key of a newer version": 1}) == loss


def test_older_recipes_without_later_settings_are_not_another_recipe(tmp_path, write_cell):
    later = {"negatives": "global", "length_bucket": 0, "compile": False, "gradient_checkpointing": False}
    write_cell("coop", recipe=RECIPE)
    write_cell("mma", recipe=RECIPE | later)
    write_cell("taskres", recipe=RECIPE | later | {"gradient_checkpointing": True})
    assert not [note for note in notes(tmp_path) if note.startswith("Mixed")]
    write_cell("maple", recipe=RECIPE | later | {"length_bucket": 8})
    assert "Mixed recipes: length_bucket 0, but 8 (maple)." in notes(tmp_path)


def test_the_time_of_a_step_is_told_in_units_that_fit():
    assert [step_text(seconds) for seconds in (None, 0.0162, 0.927, 1.55)] == [
        "",
        "16.2 ms",
        "927 ms",
        "1.6 s",
    ]
