"""A task that nothing here knows, with a metric of its own: its results say all that tables and tests need."""

from __future__ import annotations

from io import StringIO
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from benchmark.metrics.bootstrap import metrics_report
from benchmark.metrics.classification import Metric, SampleMean, stored_form
from benchmark.report.report import read_report
from benchmark.store.cells import Store

N = 80
SUITE = {"name": "own", "tasks": {"probe": {"datasets": {"set": {"title": "Toy set"}}}, "zeroshot": {}}}
LOSS = Metric(
    "loss", "log loss", unit="nats", higher=False, headline=True, references={"loss_chance": "A guess"}
)


@pytest.fixture
def rendered(tmp_path):
    ids = np.array([f"i{number}" for number in range(N)])
    for seed, (method, loss) in enumerate({"zero_shot": 0.9, "coop": 0.4, "maple": 0.89}.items()):
        values = loss + np.random.default_rng(seed).normal(0, 0.1, N)
        formulas = {"loss": SampleMean(values), "loss_chance": SampleMean(np.full(N, 1.61))}
        result: dict[str, Any] = {"n": N, "kind": "probe", "metrics": metrics_report(formulas, N, ids)}
        cell = Store(tmp_path).cell(f"runs/own/tiny/{method}/seed-0")
        identity = {"suite_name": "own", "backbone": "tiny", "method": method, "seed": 0}
        cell.write_config({**identity, "suite": SUITE, "limit": None, "recipe": {}})
        cell.write_json("status.json", {"status": "success"})
        cell.write_json("efficiency.json", {"trainable_parameters": 10 * (method != "zero_shot")})
        cell.write_json(
            "probe.json",
            {"status": "success", "metrics": {"loss": LOSS.stored()}, "datasets": {"set": result}},
        )
        arrays = {"image_id": ids, "patient_id": ids, **stored_form(formulas)}
        cell.write_npz("predictions/probe-set.npz", arrays)
    (found,) = read_report(tmp_path).rendered
    return found


def test_the_table_has_its_head_its_unit_and_its_best_row(rendered):
    (column,) = rendered.columns[1:]
    assert column.full == "Toy set log loss [nats], n = 80"
    cells = {row[0].text: row[1] for row in (*rendered.rows, *rendered.references)}
    assert cells["CoOp"].rank == "best"  # the lowest
    assert cells["MaPLe"].rank == "second"
    low, high = map(float, cells["CoOp"].interval.strip("[]").split(", "))
    assert low < float(cells["CoOp"].text) < high
    assert cells["A guess"].text == "1.61"
    best = {row[0].text for row in rendered.rows if row[1].tied or row[1].rank == "best"}
    assert best == {"CoOp"}


def test_it_is_tested_in_its_unit_and_less_is_better(rendered, tmp_path):
    assert rendered.words[0].startswith("Toy set log loss: CoOp (-0.5")
    assert " nats, p < 0.001) is better than Zero-shot" in rendered.words[0]
    report = read_report(tmp_path)
    frame = report.frames()["1"].set_index("method")
    assert frame.loc["coop", "set_loss_baseline_verdict"] == "better"
    console = Console(width=120, record=True, file=StringIO())
    console.print(report.console())
    assert "log loss" in console.export_text()
