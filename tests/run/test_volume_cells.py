"""Whole cells on CT volumes: own files by CSV, CT-CLIP's tower in small, methods of each kind."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmark.config.run_config import Recipe
from benchmark.console import NullReporter
from benchmark.plan import CellSpec
from benchmark.registry import BACKBONES
from benchmark.run.execute import execute_cell
from benchmark.store.cells import Store
from tests.backbones import ct_small
from tests.backbones.medical_parts import WORDS
from tests.data.test_volumes import chest, write_nifti

SCANS = 16


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small CT-CLIP as a file of weights, which the registered backbone takes."""
    record = ct_small.record()
    fitted = replace(record.preprocess, spacing=(20.0, 15.0, 15.0))
    monkeypatch.setattr(BACKBONES.get("ct_clip"), "record", replace(record, preprocess=fitted))
    source = ct_small.small()
    model: Any = source.model
    table = model.text.transformer.embeddings.word_embeddings
    with torch.no_grad():
        table.weight = nn.Parameter(table.weight.repeat(3, 1)[: len(WORDS)])
    (tmp_path / "model").mkdir()
    return ct_small.write(tmp_path / "model", ct_small.published(source))


def make_csv(folder: Path) -> Path:
    rows = []
    for i in range(SCANS):
        name = write_nifti(folder / f"scan-{i}.nii.gz", chest(i)).name
        part = "train" if i < 8 else "valid" if i < 12 else "test"
        rows.append((name, f"report {i}", str(i % 2), f"patient-{i // 2}", part))
    with (folder / "scans.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "text", "Nodule", "patient_id", "split"), *rows])
    return folder / "scans.csv"


def test_cells_run_on_volumes(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "benchmark.data.prepare.prepare.usable_cores", lambda: 1
    )  # no process for 16 small files
    entry = {"dataset": "csv", "file": str(make_csv(tmp_path / "scans")), "label_columns": ["Nodule"]}
    labels = {"kind": "binary", "classes": ["No Nodule", "Nodule"], "positive": "Nodule"}
    tested = {**entry, **labels, "part": "test"}
    suite: dict[str, Any] = {
        "name": "scans",
        "templates": ["a chest CT of {}."],
        "corpus": {**entry, "part": "train"},
        "validation": {
            **entry, "part": "valid", "task": "zeroshot", "metric": "auroc", "kind": "multilabel",
            "classes": ["Nodule"], "min_positives": 1,
        },
        "tasks": {"zeroshot": {"bootstrap": 10, "datasets": {"scans": tested}}},
    }  # fmt: skip
    for method in ("zero_shot", "clip_lora", "molre"):
        spec = CellSpec(
            suite_name="scans", suite=suite, backbone="ct_clip", pretrained=str(weights), method=method, options={},
            seed=0, recipe=Recipe(epochs=1, batch_size=4, lr=1e-3, eval_batch_size=3), tasks=dict(suite["tasks"]),
            data_root=tmp_path / "data",
        )  # fmt: skip
        store = Store(tmp_path / "out")
        outcome = execute_cell(spec, store, NullReporter())
        assert outcome.status == "done", outcome
        folder = store.cell(spec.folder)
        found = folder.read_json("zeroshot.json")["datasets"]["scans"]
        assert found["n"] == 4
        assert 0 <= found["metrics"]["auroc"]["value"] <= 1
        assert found["info"]["data_transform"].startswith("volume-6x12x12-20x15x15mm-slp")
        assert folder.read_json("provenance.json")["weights"]["preprocess"]["spacing"] == [20.0, 15.0, 15.0]
