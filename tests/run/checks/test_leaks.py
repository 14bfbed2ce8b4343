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
from benchmark.files import ROOT
from benchmark.preprocess import Fitting
from benchmark.run.checks import image_hashes
from benchmark.run.checks.overlap import Overlap, check, facts, overlaps
from tests.data import real

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


# ---------------------------------------------------------------------- near copies
def test_a_film_compressed_and_resized_anew_is_reported_under_any_crop(tmp_path: Path) -> None:
    corpus = [(film(tmp_path / "films" / f"{i}.png", i), "") for i in range(8)]
    others = [(film(tmp_path / "others" / f"{i}.png", 100 + i), "") for i in range(6)]
    for source in (4, 7):
        name = f"others/{source}.jpg"
        image = PIL.Image.open(tmp_path / "films" / f"{source}.png")
        image.resize((150, 100), PIL.Image.Resampling.BILINEAR).save(tmp_path / name, quality=60)
        others.append((name, ""))
    entries = (
        {"file": table(tmp_path / "a.csv", corpus), "crop": "squash"},
        {"file": table(tmp_path / "b.csv", others)},
    )
    found = overlaps(suite(*entries), tmp_path / "data", QUIET, fitting=FITTING)
    assert [str(item) for item in found] == [
        "test set 'tested' (zeroshot): 2 of 8 images are near copies of images in the corpus 'csv' "
        "('others/4.jpg' of 'films/4.png', 'others/7.jpg' of 'films/7.png')"
    ]
    check(found, allow=False)
    about = facts(found, "zeroshot", "tested")
    assert (about["overlaps"][0]["near_copies"], "data_notes" in about) == (2, False)


def test_near_copies_are_those_of_the_plain_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("_ROWS", 7), ("_COLUMNS", 16), ("_PAIRS", 3)):
        monkeypatch.setattr(image_hashes, name, size)
    generator = np.random.default_rng(0)
    theirs = generator.normal(128, 30, (50, 32, 32))
    noise = generator.normal(0, 1, (40, 32, 32))
    noise[::2] = np.kron(
        generator.normal(0, 1, (20, 8, 8)), np.ones((4, 4))
    )  # and stains, which the means keep
    noise *= np.linspace(0, 6, 40)[:, None, None]
    mine = theirs[generator.integers(0, 50, 40)] + noise
    mine[3], theirs[5] = 7, 7  # blank ones are nobody's copy
    ones, others = (np.clip(rows, 0, 255).astype(np.uint8) for rows in (mine, theirs))
    with np.errstate(invalid="ignore"):
        plain = np.nan_to_num(np.corrcoef(ones.reshape(40, -1), others.reshape(50, -1))[:40, 40:])
    near = shown(ones).near(shown(others))
    expected = plain.max(axis=1) > image_hashes.NEAR
    assert 5 < expected.sum() < 35
    np.testing.assert_array_equal(near, np.where(expected, plain.argmax(axis=1), -1))


def shown(thumbnails: np.ndarray) -> image_hashes.Imprint:
    none = np.zeros(len(thumbnails), dtype=np.uint64)
    return image_hashes.Imprint([""] * len(none), [""] * len(none), none, none, thumbnails, "", "")


@pytest.mark.parametrize("name", ["phantom", "phantom_histology"])
def test_drawn_images_raise_no_alarm(tmp_path: Path, name: str) -> None:
    wanted = yaml.safe_load((ROOT / "configs" / "suites" / f"{name}.yaml").read_text())
    entries = [wanted["corpus"], wanted["validation"], *wanted["tasks"]["zeroshot"]["datasets"].values()]
    for entry in entries:
        entry["n"] = 100
    wanted["tasks"] = {"zeroshot": wanted["tasks"]["zeroshot"]}
    assert overlaps(wanted, tmp_path, QUIET) == []


def of_real(tmp_path: Path, folder: Path, corpus: Rows, tested: Rows) -> list[Overlap]:
    """Return what sets of real images repeat, and what they share."""
    tables = [table(tmp_path / f"{len(rows)}.csv", rows) for rows in (corpus, tested)]
    entries = ({"file": file, "images": str(folder)} for file in tables)
    return overlaps(suite(*entries), tmp_path / "data", QUIET, fitting=FITTING)


def test_real_films_raise_an_alarm_only_where_they_are_copies(tmp_path: Path) -> None:
    """NIH: 63 of 200 test films are of 8 patients of the training films, but none is a copy of one."""
    folder = real.folder("nih1000")
    films = (sorted((folder / "NIH1000" / part).rglob("*.png")) for part in ("train", "test"))
    train, test = ([(str(path.relative_to(folder)), path.name[:8]) for path in part] for part in films)
    (found,) = of_real(tmp_path, folder, train, test)
    assert (len(found.of_patients), found.of, found.patients) == (63, 200, 8)
    assert (found.images, found.near, found.leak) == ((), (), False)


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
        "overlaps": [{"with": "the corpus 'csv'", "images": 0, "near_copies": 0, "images_of_patients": 6,
                      "patients": 2, "seen": True, "leak": False,
                      "text": "6 of 8 images are of 2 patients of the corpus 'csv'"}]
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
