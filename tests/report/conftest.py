"""Made-up result stores, written through the store itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.config.experiments import Experiment, ResolvedRow, resolve
from benchmark.metrics.classification import plain_value, zero_shot_metrics
from benchmark.report import collect, experiment_tables, report
from benchmark.report.tables import datasets
from benchmark.report.tables.table import Table
from benchmark.store.cells import CellFolder, Store

SUITE: dict[str, Any] = {
    "name": "toy",
    "title": "Toy suite",
    "validation": {"metric": "auroc"},
    "tasks": {
        "zeroshot": {
            "datasets": {
                "chexpert_5x200": {"title": "CheXpert 5x200", "kind": "multiclass"},
                "rsna": {"title": "RSNA", "kind": "binary"},
            }
        }
    },
    "paper": {
        "table_1": {"CheXpert5x200": "chexpert_5x200", "RSNA": "rsna"},
        "comparable": False,
        "why": "the images are generated",
    },
}
COMPARABLE = SUITE | {"paper": SUITE["paper"] | {"comparable": True}}
WriteCell = Callable[..., CellFolder]


def shown(table: Table, column: str) -> dict[str, str]:
    """Text of a column of a table by the title of the row."""
    at = [one.full for one in table.columns].index(column)
    return {cells[0].text: cells[at].text for cells in (*table.rows, *table.references)}


def metric(value: float | None, half: float = 0.03) -> dict[str, Any]:
    bounds = (None, None) if value is None else (value - half, value + half)
    return {"value": value, "ci_low": bounds[0], "ci_high": bounds[1], "n": 1000}


def results(acc: float, auroc: float) -> dict[str, Any]:
    """Results of both datasets of the toy suite; RSNA is ten points above CheXpert."""
    names = ("acc", "balanced_acc", "majority_acc", "auroc", "auroc_flat")
    values = {
        "chexpert_5x200": (acc, acc, 0.2, auroc, auroc - 0.01),
        "rsna": (acc + 0.1, acc + 0.05, 0.77, auroc + 0.1, auroc + 0.1),
    }
    return {
        dataset: {"n": 1000, "metrics": dict(zip(names, map(metric, found), strict=True))}
        for dataset, found in values.items()
    }


def made_of(*, numbers: int = 1, weights: str = "w", arithmetic: str = "fp32", **data: str) -> dict[str, Any]:
    """The identity of a made-up cell: here all data stand in adapt.json and in the task's file."""
    known = {"corpus": "c-c", "validation": "v-v", "chexpert_5x200": "x-x", "rsna": "r-r"}
    return {"numbers": numbers, "weights": weights, "arithmetic": arithmetic, "data": known | data}


def write_report(folder: Path, *, formats: Sequence[str] = report.FORMATS, **how: Any) -> list[Path]:
    """Write the report of a store and return the files."""
    return report.read_report(folder, **how).write(formats)


@pytest.fixture
def write_cell(tmp_path: Path) -> WriteCell:
    """Write one cell below tmp_path; ``scores`` is (accuracy, AUROC) on CheXpert or None for no results."""

    def write(
        method: str,
        seed: int = 0,
        scores: tuple[float, float] | None = (0.4, 0.7),
        *,
        suite: dict[str, Any] = SUITE,
        backbone: str = "tiny",
        status: str = "success",
        error: str = "",
        limit: int | None = None,
        parameters: int = 12_345,
        step: float | None = 0.02,
        flops: float | None = 3.0e9,
        curve: tuple[float, ...] = (0.5, 0.6, 0.65),
        dirty: bool = False,
        variant: str = "",
        recipe: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        made: dict[str, Any] | None = None,
        created: str = "",
        **adapted: Any,
    ) -> CellFolder:
        folder = f"{method}+{variant}" if variant else method
        cell = Store(tmp_path).cell(f"runs/{suite['name']}/{backbone}/{folder}/seed-{seed}")
        identity = {"suite_name": suite["name"], "backbone": backbone, "method": method, "seed": seed}
        settings = {"suite": suite, "limit": limit, "variant": variant, "recipe": recipe or {}}
        settings["options"] = options or {}
        cell.write_config({**identity, **settings})
        cell.write_json("status.json", {"status": status, "error": error})
        origin = {"created": created, "git": {"commit": "0123456789abcdef", "dirty": dirty}}
        cell.write_json("provenance.json", origin)
        identity = {} if made is None else {"identity": made_of(**made)}
        cell.write_json("adapt.json", {**identity, **adapted})
        cell.write_json(
            "efficiency.json",
            {
                "trainable_parameters": parameters,
                "trainable_parameters_without_logit_scale": max(0, parameters - 1),
                "by_tower": {"image": 345, "text": 12_000, "shared": 0},
                "step_flops_per_pair": flops,
                "step_time_p50_s": step,
                "flops_convention": "multiply-add = 2",
                "wall_time_s": 61.0 + seed,
            },
        )
        steps = [
            {"step": 10 * number, "val_auroc": value + 0.01 * seed} for number, value in enumerate(curve)
        ]
        cell.write_history([{"step": 5, "train_loss": 1.0, "val_auroc": None}, *steps])
        if scores is not None:
            found = {"task": "zeroshot", "status": "success", "datasets": results(*scores)}
            cell.write_json("zeroshot.json", {**found, **identity})
        return cell

    return write


ROUNDS = 90
TWO_SETS: dict[str, Any] = {
    "name": "toy",
    "title": "Toy suite",
    "tasks": {"zeroshot": {"datasets": {"films": {"title": "Wide film set"}, "slides": {"title": "Slides"}}}},
}


def store_predictions(
    folder: Path, method: str, skills: Sequence[float], seed: int = 0, trained: int = 97
) -> None:
    """Store a cell with predictions on two sets, whose accuracy grows with the skill on each."""
    shared, own = np.random.default_rng(1), np.random.default_rng((seed, len(method), trained))
    cell = Store(folder).cell(f"runs/toy/tiny/{method}/seed-{seed}")
    cell.write_config(
        {"suite_name": "toy", "backbone": "tiny", "method": method, "seed": seed, "suite": TWO_SETS}
    )
    cell.write_json("status.json", {"status": "success"})
    costs = {"trainable_parameters": trained, "total_parameters": 1_000_000, "forward_flops_per_pair": 1e8}
    cell.write_json("efficiency.json", {**costs, "step_time_p50_s": 1e-5 * trained or None})
    datasets = {}
    for name, skill in zip(("films", "slides"), skills, strict=True):
        target, ids = np.arange(ROUNDS) % 3, np.array([f"{name}{at}" for at in range(ROUNDS)])
        noise = shared.normal(0, 1, (ROUNDS, 3)) + own.normal(0, 0.1, (ROUNDS, 3))
        similarity = (skill * np.eye(3)[target] + noise).astype(np.float32)
        found = zero_shot_metrics("multiclass", similarity, 1.0, target)
        values = {key: plain_value(found[key], ROUNDS) for key in ("acc", "auroc")}
        entries = {
            key: {"value": value, "ci_low": value - 0.08, "ci_high": min(1.0, value + 0.08), "n": ROUNDS}
            for key, value in values.items()
        }
        info = {"logit_scale": 1.0, "classes": ["a", "b", "c"]}
        datasets[name] = {"n": ROUNDS, "kind": "multiclass", "metrics": entries, "info": info}
        arrays = {"image_id": ids, "patient_id": ids, "similarity": similarity, "target": target}
        cell.write_npz(f"predictions/zeroshot-{name}.npz", arrays)
    cell.write_json("zeroshot.json", {"task": "zeroshot", "status": "success", "datasets": datasets})


@pytest.fixture(scope="session")
def decided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of five methods on two sets: one gains everywhere, one gains and loses, one loses, one is alike."""
    folder = tmp_path_factory.mktemp("decided")
    store_predictions(folder, "zero_shot", (1.0, 1.0), trained=0)
    for seed in (0, 1):
        store_predictions(folder, "clip_adapter", (3.0, 3.0), seed, 4_609)
        store_predictions(folder, "full_ft", (4.0, 0.0), seed, 900_000)
        store_predictions(folder, "taskres", (1.0, 1.0), seed, 97)
    store_predictions(folder, "peft:dora", (0.0, 0.0), 0, 12_000)
    return folder


@pytest.fixture
def choose_experiments(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the report know these experiments alone; each is an Experiment with the rows that it resolves to."""

    def choose(*chosen: tuple[Experiment, Sequence[ResolvedRow]]) -> None:
        rows = {experiment.id: tuple(resolved) for experiment, resolved in chosen}
        monkeypatch.setattr(report, "experiments", lambda: tuple(one for one, _ in chosen))
        for module in (experiment_tables, datasets):
            monkeypatch.setattr(
                module, "resolve", lambda one, *where: rows.get(one.id) or resolve(one, *where)
            )

    return choose


@pytest.fixture
def plain_titles(monkeypatch, choose_experiments):
    """Methods are called by their names, and there is the main table alone."""
    choose_experiments()
    monkeypatch.setattr(collect, "method_titles", lambda name: (name, name))
