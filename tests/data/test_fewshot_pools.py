"""Labelled images of one's own CSV file and of MedMNIST serve few-shot protocols: part, patients, counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmark.backbones import load_backbone
from benchmark.cli import main
from benchmark.config.load import load_config
from benchmark.plan import CellSpec, make_plan
from benchmark.preprocess import Fitting
from benchmark.run.few_labels import FewLabels
from benchmark.store.cells import Store
from tests.data.test_medmnist import made, npz
from tests.data.test_own_data import films
from tests.small import context

OWN = {"dataset": "csv", "split_column": "part", "class_column": "finding", "patient_column": "patient", "part": "test",
       "kind": "multiclass", "classes": ["normal", "edema", "effusion"]}  # fmt: skip
LUNGS = {"dataset": "medmnist", "name": "pneumoniamnist", "part": "test", "kind": "binary", "positive": "pneumonia",
         "classes": ["normal", "pneumonia"]}  # fmt: skip


def cells(root: Path, dataset: dict[str, Any], **flags: Any) -> list[CellSpec]:
    suite = {"name": "pools", "templates": ["{}"], "tasks": {"zeroshot": {"datasets": {"set": dataset}}}}
    (root / "pools.yaml").write_text(yaml.safe_dump(suite))
    asked = {
        "suite": str(root / "pools.yaml"),
        "protocol": "fewshot",
        "methods": "clap",
        "shots": "2",
        "seeds": "1",
    }
    places = {"device": "cpu", "data_root": str(root / "data"), "output_dir": str(root / "out")}
    config = load_config(asked | places | flags)
    return [planned.spec for planned in make_plan(config, Store(config.output_dir)).cells]


@pytest.mark.parametrize("selection", ["strict", "coop"])
def test_a_csv_file_is_learnt_from_its_part_train(tmp_path: Path, selection: str) -> None:
    dataset = OWN | {"file": str(films(tmp_path, 36))}
    (spec,) = cells(tmp_path, dataset, selection=selection)
    assert (spec.suite["corpus"]["part"], "validation" in spec.suite) == ("train", selection == "coop")
    few = FewLabels(spec, context(load_backbone("tiny"), tmp_path / "data"))
    assert len(few.pool) == 12  # of 36 rows, four of each class
    drawn = few.support
    assert few.facts()["images_of_class"] == {"normal": 2, "edema": 2, "effusion": 2}
    assert few.facts()["labels_for_validation"] == (6 if selection == "coop" else 0)
    train = {f"films/{i:02d}.png" for i in range(36) if i // 3 % 3 == 0}
    assert set(drawn.ids) <= train
    if selection == "strict":  # the file names patients: an image of each first
        assert all(
            len({drawn.clusters[row] for row in np.flatnonzero(drawn.targets == label)}) == 2
            for label in range(3)
        )


def test_validate_counts_the_rows_of_a_csv_file_and_opens_no_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = films(tmp_path, 36)
    for image in file.parent.glob("films/*.png"):
        image.write_bytes(b"not an image")

    def validated(status: int, **changes: Any) -> dict[str, Any]:
        cells(tmp_path, OWN | {"file": str(file)} | changes)
        words = f"validate --suite {tmp_path}/pools.yaml --protocol fewshot --methods clap --shots 2 --json".split()
        assert main([*words, "--data-root", str(tmp_path / "data"), "--device", "cpu"]) == status
        return {item["name"]: item for item in json.loads(capsys.readouterr().out)["items"]}

    found = validated(0)["supports of set"]
    assert (found["state"], found["found"]) == ("ok", "12 labelled images of 3 classes; 2 shots: 6 labels")
    wrong = validated(2, classes=["normal", "edema", "fracture"])
    assert wrong["supports of set"]["found"] == "not counted: its data are not here, or cannot be read"
    assert any(item["state"] == "missing" and "effusion" in item["found"] for item in wrong.values())


def test_medmnist_is_learnt_from_its_part_train_and_validated_on_val(tmp_path: Path) -> None:
    parts = {"train": [0, 1, 1, 1, 0, 1, 1, 1], "val": [0, 1, 1], "test": [0, 1, 0, 1]}
    arrays = {f"{part}_labels": np.array(labels, np.uint8)[:, None] for part, labels in parts.items()}
    arrays |= {
        f"{part}_images": np.full((len(labels), 16, 16), 9, np.uint8) for part, labels in parts.items()
    }
    npz(tmp_path, "pneumoniamnist", **arrays)
    made(tmp_path, "pneumoniamnist", fitting=Fitting((64, 64)))
    (tmp_path / "root").rename(tmp_path / "data")
    (strict,) = cells(tmp_path, LUNGS)
    (coop,) = cells(tmp_path, LUNGS, selection="coop")
    (realistic,) = cells(tmp_path, LUNGS, sampling="realistic")
    surroundings = context(load_backbone("tiny"), tmp_path / "data")
    found = [FewLabels(spec, surroundings).facts() for spec in (strict, coop, realistic)]
    assert [one["images_of_class"] for one in found] == [
        {"normal": 2, "pneumonia": 2},
        {"normal": 2, "pneumonia": 2},
        {"normal": 1, "pneumonia": 3},  # a quarter of the part is normal
    ]
    assert [one["labels_for_validation"] for one in found] == [0, 3, 0]
