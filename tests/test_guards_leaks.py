"""What two data sets share is found whatever their files, crops and tables are: files, near copies, patients."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import yaml

from benchmark.cli import main
from benchmark.console import NullReporter
from benchmark.data.fitting import Fitting
from benchmark.guards.overlap import facts, overlaps

QUIET = NullReporter()
FITTING = Fitting((64, 64))
LABELS = {"kind": "multiclass", "classes": ["Normal", "Edema"], "class_column": "finding"}
Rows = Sequence[tuple[str, str]]


def film(path: Path, seed: int) -> str:
    """Write a film of noise that is wider than high, so that another crop makes another picture of it."""
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 9), dtype=np.uint8)
    PIL.Image.fromarray(pixels).resize((96, 64), PIL.Image.Resampling.BICUBIC).save(path)
    return f"{path.parent.name}/{path.name}"


def table(path: Path, rows: Rows, patient: str = "patient_id") -> str:
    """Write a CSV file with one row per pair of image path and patient."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "text", "finding", patient])
        for i, (name, person) in enumerate(rows):
            writer.writerow([name, f"Report {i}.", LABELS["classes"][i % 2], person])
    return str(path)


def suite(corpus: Mapping[str, Any], tested: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": "small",
        "backbone": "tiny",
        "templates": ["a picture of {}."],
        "corpus": {"dataset": "csv", **corpus},
        "tasks": {
            "zeroshot": {"bootstrap": 5, "datasets": {"tested": {"dataset": "csv", **LABELS, **tested}}}
        },
    }


def test_the_same_files_under_another_crop_stop_the_run_before_any_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(film(tmp_path / "films" / f"{i}.png", i), "") for i in range(8)]
    others = [(film(tmp_path / "others" / f"{i}.png", 100 + i), "") for i in range(4)]
    wanted = suite(
        {"file": table(tmp_path / "a.csv", rows), "crop": "squash"}, {"file": table(tmp_path / "b.csv", rows)}
    )
    wanted["validation"] = {"task": "zeroshot", "metric": "auroc", "dataset": "csv", **LABELS}
    wanted["validation"]["file"] = table(tmp_path / "others.csv", others)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(wanted))
    words = ["--suite", str(tmp_path / "small.yaml"), "--methods", "taskres", "--data-root", str(tmp_path / "data"),
             "--output-dir", str(tmp_path / "out"), "--device", "cpu", "--jobs", "1", "--batch-size", "4"]  # fmt: skip
    line = "8 of 8 images are also in the corpus 'csv' ('films/0.png', 'films/1.png', 'films/2.png', ...)"
    assert main(["validate", *words, "--images", "--json"]) == 2
    missing = [
        item["found"] for item in json.loads(capsys.readouterr().out)["items"] if item["state"] == "missing"
    ]
    assert missing == [f"test set 'tested' (zeroshot): {line}"]
    assert main(words) == 2
    assert f"{line}, by content: take them out of one of the two" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("status.json"))


# ---------------------------------------------------------------------- patients
def of_patients(tmp_path: Path, column: str = "patient_id", names: Sequence[str] = ("", "")) -> list[Any]:
    """Return what a test set of films of its own shares with a corpus of five films of four patients."""
    corpus = [(film(tmp_path / "films" / f"{i}.png", i), f"p{i % 4}") for i in range(5)]
    others = [(film(tmp_path / "others" / f"{i}.png", 100 + i), f"p{i // 3 + 2}") for i in range(8)]
    entries: list[dict[str, Any]] = [
        {"file": table(tmp_path / "corpus.csv", corpus)},
        {"file": table(tmp_path / "others.csv", others, column), "patient_column": column},
    ]
    for entry, name in zip(entries, names, strict=True):
        entry.update({"patients": name} if name else {})
    return overlaps(suite(*entries), tmp_path / "data", QUIET, fitting=FITTING)


def test_patients_of_two_csv_files_are_reported_and_stop_nothing(tmp_path: Path) -> None:
    found = of_patients(tmp_path)
    assert [str(item) for item in found] == [
        "test set 'tested' (zeroshot): 6 of 8 images are of 2 patients of the corpus 'csv' "
        "('others/0.png', 'others/1.png', 'others/2.png', ...)"
    ]
    assert not found[0].leak
    assert facts(found, "zeroshot", "tested") == {
        "overlaps": [{"with": "the corpus 'csv'", "images": 0, "images_of_patients": 6, "patients": 2, "leak": False}]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("column", "names", "comparable"),
    [
        ("subject", ("", ""), False),  # another column: ids of somebody else
        ("patient_id", ("", "elsewhere"), False),
        ("subject", ("here", "here"), True),
    ],
)
def test_ids_are_compared_where_they_name_the_same_people(
    tmp_path: Path, column: str, names: Sequence[str], comparable: bool
) -> None:
    assert len(of_patients(tmp_path, column, names)) == comparable
