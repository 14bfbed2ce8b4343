"""One's own CSV file: the documented suite runs as it stands, and every mistake is one line with row and column."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from benchmark.cli import main
from benchmark.config.run_config import Recipe
from benchmark.console import NullReporter
from benchmark.data.entries import load_dataset
from benchmark.data.samples import labelled_images, pairs
from benchmark.errors import BenchmarkError, DataError
from benchmark.files import ROOT
from benchmark.plan import CellSpec
from benchmark.preprocess import Fitting
from benchmark.run import cell, prepare_suite
from benchmark.store.cells import Store

DOC = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"<!-- films.csv -->\n```csv\n(.*?)```", DOC, flags=re.S)[1]
SUITE = re.search(r"<!-- own.yaml -->\n```yaml\n(.*?)```", DOC, flags=re.S)[1]
COMMAND = re.search(r"python run_benchmark.py (--suite own.yaml .*)", DOC)[1]
CLASSES = {"normal": ("0", "0"), "edema": ("1", ""), "effusion": ("0", "1")}


def films(folder: Path, count: int = 30) -> Path:
    """Write the documented columns for more rows, with images of noise."""
    (folder / "films").mkdir(parents=True)
    generator = np.random.default_rng(0)
    with (folder / "films.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(EXAMPLE.splitlines()[0].split(","))
        for i in range(count):
            name = f"films/{i:02d}.png"
            PIL.Image.fromarray(generator.integers(0, 256, (20, 24), dtype=np.uint8)).save(folder / name)
            finding = list(CLASSES)[i % 3]
            part = ("train", "val", "test")[i // 3 % 3]
            writer.writerow([name, f"Report {i}: {finding}.", part, f"p{i // 2}", finding, *CLASSES[finding]])
    return folder / "films.csv"


@pytest.mark.slow
def test_the_documented_suite_runs_with_the_documented_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    films(tmp_path)
    (tmp_path / "own.yaml").write_text(SUITE)
    assert main([*COMMAND.split(), "--max-steps", "2", "--jobs", "1", "tasks.zeroshot.bootstrap=20"]) == 0
    cell = tmp_path / "results" / "runs" / "own" / "tiny" / "taskres" / "seed-0"
    result = json.loads((cell / "zeroshot.json").read_text())["datasets"]
    assert {name: (item["kind"], item["n"]) for name, item in result.items()} == {
        "finding": ("multiclass", 9), "edema": ("binary", 9), "labels": ("multilabel", 9),
    }  # fmt: skip
    assert result["finding"]["info"]["data_transform"] == "shortest_crop-64x64"
    assert result["labels"]["info"]["labels"] == {"blank": {"count": 3, "set_to": "zero"}}
    assert "labels" not in result["finding"]["info"]
    assert json.loads((cell / "adapt.json").read_text())["pairs"] == 12
    assert len(list((tmp_path / "data" / "csv").iterdir())) == 1  # five entries, one preparation


def load(folder: Path, **keys: Any) -> Any:
    entry = {"dataset": "csv", "file": str(folder / "films.csv"), "split_column": "part", **keys}
    return load_dataset(entry, folder / "data", NullReporter(), Fitting((8, 8)))


def changed(file: Path, old: str, new: str) -> Path:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    return file.parent


def test_texts_labels_and_pixels_stay_together(tmp_path: Path) -> None:
    films(tmp_path)
    corpus = pairs("own", load(tmp_path, part="val", text_column="report", label_columns="Edema,Effusion"))
    assert corpus.texts[:2] == ["Report 3: normal.", "Report 4: edema."]
    assert corpus.labels.tolist()[:3] == [[0, 0], [1, 0], [0, 1]]
    view = load(tmp_path, part="val")
    from benchmark.data.prepare.images import read_image

    expected = Fitting((8, 8), "shortest_crop").pixels(read_image(tmp_path / "films" / "04.png").pixels)
    np.testing.assert_array_equal(view.pixels[1], expected)
    spec = {"kind": "multiclass", "classes": ["effusion", "edema", "normal"]}
    test = labelled_images(
        "own", load(tmp_path, part="test", class_column="finding", patient_column="patient", **spec), spec
    )
    assert test.targets.tolist()[:3] == [2, 1, 0]
    assert test.clusters[:3] == ["p3", "p3", "p4"]


def test_cells_of_the_split_are_stripped_and_empty_ones_counted(tmp_path: Path) -> None:
    file = films(tmp_path)
    lines = file.read_text().splitlines()
    place = lines[0].split(",").index("part")
    rows = [line.split(",") for line in lines[1:]]
    tests = [row for row in rows if row[place] == "test"]
    tests[0][place], tests[1][place] = " test ", "\u00a0test"
    tests[2][place] = " "
    file.write_text("\n".join([lines[0], *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")
    view = load(tmp_path, part="test")
    assert len(view.manifest) == len(tests) - 1
    assert view.info["notes"][-1] == "rows of films.csv that are in no part (empty cell): 1"


def test_without_a_size_nothing_is_decoded(tmp_path: Path) -> None:
    films(tmp_path)
    entry = {"dataset": "csv", "file": str(tmp_path / "films.csv"), "split_column": "part", "part": "test"}
    assert len(load_dataset(entry, tmp_path / "data", NullReporter())) == 9
    assert not (tmp_path / "data").exists()


def test_an_edited_label_is_seen_and_no_image_is_decoded_again(tmp_path: Path, monkeypatch) -> None:
    file = films(tmp_path)
    spec = {"kind": "multilabel", "classes": ["Edema"]}
    before = labelled_images("own", load(tmp_path, **spec), spec)
    changed(file, "p0,normal,0,0", "p0,normal,1,0")
    monkeypatch.setattr("benchmark.data.prepare.decode.read_image", lambda *_: pytest.fail("decoded again"))
    after = labelled_images("own", load(tmp_path, **spec), spec)
    assert (before.targets[0, 0], after.targets[0, 0]) == (0, 1)
    assert before.digest != after.digest


def test_files_of_one_name_in_two_folders_have_their_own_pixels(tmp_path: Path) -> None:
    """Also when the images have the same names, sizes and times, and when one folder takes the place of the other."""
    one, other, root = tmp_path / "a" / "set", tmp_path / "b" / "set", tmp_path / "data"
    films(one, 2)
    shutil.copytree(one, other)
    for i, name in enumerate(
        ("films/00.png", "films/01.png")
    ):  # in the other folder each shows the other's film
        times = (one / name).stat()
        shutil.copyfile(one / f"films/0{1 - i}.png", other / name)
        os.utime(other / name, ns=(times.st_atime_ns, times.st_mtime_ns))

    def pixels(folder: Path) -> np.ndarray:
        entry = {"dataset": "csv", "file": str(folder / "films.csv"), "split_column": "part"}
        return np.asarray(load_dataset(entry, root, NullReporter(), Fitting((8, 8))).pixels)

    before = pixels(one)
    assert not np.array_equal(before[0], before[1])
    np.testing.assert_array_equal(pixels(other), before[::-1])
    np.testing.assert_array_equal(pixels(one), before)
    assert len(list((root / "csv").iterdir())) == 2
    one.rename(tmp_path / "gone")
    other.rename(one)
    np.testing.assert_array_equal(pixels(one), before[::-1])


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators_and_a_byte_order_mark(tmp_path: Path, separator: str) -> None:
    file = films(tmp_path)
    rows = list(csv.reader(file.read_text().splitlines()))
    with file.open("w", newline="", encoding="utf-8-sig") as out:
        csv.writer(out, delimiter=separator).writerows(rows)
    assert load(tmp_path, part="test").manifest["image_id"][0] == "films/06.png"


def test_excluded_classes_and_images_elsewhere(tmp_path: Path) -> None:
    films(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "films").rename(tmp_path / "elsewhere" / "films")
    spec = {"kind": "multiclass", "classes": ["edema", "effusion"], "exclusive": True}
    data = load(tmp_path, images=str(tmp_path / "elsewhere"), class_column="finding", part="test", **spec)
    assert labelled_images("own", data, spec).targets.tolist()[:2] == [0, 1]


def test_no_finding_and_exclusive_look_at_every_label_column(tmp_path: Path) -> None:
    """Rows: normal, edema and effusion in turns; an effusion is no normal film, whatever the classes are."""
    file = films(tmp_path)
    spec = {"kind": "multilabel", "classes": ["No Finding", "Edema"]}
    for keys in (spec, {"kind": "multiclass", "classes": ["Edema"], "exclusive": True}):
        with pytest.raises(DataError, match=r"row 1: .*every label column.*label_columns: \[Edema, \.\.\.\]"):
            load(tmp_path, **keys)
    all_columns = {"label_columns": ["Edema", "Effusion"]}
    view = labelled_images("own", load(tmp_path, part="test", **spec, **all_columns), spec)
    assert view.targets.tolist()[:3] == [[1, 0], [0, 1], [0, 0]]
    file.write_text(file.read_text().replace("Edema,Effusion", "label_Edema,label_Effusion", 1))
    assert labelled_images("own", load(tmp_path, part="test", **spec), spec).targets.tolist()[:3] == [
        [1, 0], [0, 1], [0, 0],
    ]  # fmt: skip


def test_boxes_of_a_column_are_those_of_the_original_image(tmp_path: Path) -> None:
    file = films(tmp_path, count=3)
    boxes = ("[[2, 3, 12.5, 19]]", "[]", "[[0, 0, 24, 20], [1, 1, 2, 2]]")
    rows = "".join(f'films/{i:02d}.png,train,"{text}"\n' for i, text in enumerate(boxes))
    file.write_text("path,part,lungs\n" + rows)
    data = load(tmp_path, boxes_column="lungs", crop="squash")
    assert data.manifest["boxes"].tolist() == list(boxes)
    assert data.manifest[["original_width", "original_height"]].to_numpy().tolist() == [[24, 20]] * 3
    for wrong, said in (
        ("2, 3, 12, 19", r"expected \[\[x1, y1, x2, y2\], \.\.\.\], got '2, 3, 12, 19'"),
        ("[[12, 3, 2, 19]]", r"expected \[\[x1, y1, x2, y2\]"),
        ("[[2, 3, 48, 40]]", r"box \[2, 3, 48, 40\] does not lie in the image, 24 x 20 pixels"),
    ):
        file.write_text("path,part,lungs\n" + rows.replace(boxes[0], wrong))
        with pytest.raises(DataError, match="row 2, column 'lungs': " + said):
            load(tmp_path, boxes_column="lungs")


def test_a_column_says_which_rows_have_labels(tmp_path: Path) -> None:
    file = films(tmp_path, count=2)
    file.write_text(
        "path,report,part,labelled,Edema\nfilms/00.png,Clear.,train,1,\nfilms/01.png,Clear.,train,,\n"
    )
    corpus = pairs("own", load(tmp_path, text_column="report", label_columns=["Edema"]))
    np.testing.assert_array_equal(corpus.labels, [[0], [np.nan]])
    assert corpus.facts["labels"] == {"blank": {"count": 1, "set_to": "zero"}, "rows_without": 1}


def test_a_damaged_image_is_named_or_left_out(tmp_path: Path) -> None:
    films(tmp_path)
    (tmp_path / "films" / "07.png").write_bytes(b"<html>")
    with pytest.raises(
        BenchmarkError, match=r"films\.csv: row 9, column 'path': image 'films/07.png': a web page"
    ):
        load(tmp_path)
    with pytest.raises(BenchmarkError, match=r"row 2, .*'films/00.png': more than 100 pixels; if the"):
        load(tmp_path, max_pixels=100)
    spec = {"kind": "multilabel", "classes": ["Edema"]}
    data = load(tmp_path, on_bad_image="skip", part="test")
    assert "films/07.png" not in set(data.manifest["image_id"])
    view = labelled_images("own", load(tmp_path, on_bad_image="skip", part="test", **spec), spec)
    assert len(view) == 8
    assert view.facts["data_notes"] == [
        "1 images that cannot be read were left out (of 30 in all parts together)"
    ]


def cell_of(folder: Path, **datasets: Any) -> CellSpec:
    """Return a cell that adapts on the films, with these test sets."""
    own = {"dataset": "csv", "file": str(folder / "films.csv"), "split_column": "part"}
    labels = {"kind": "multilabel", "classes": ["Edema", "Effusion"]}
    suite = {
        "name": "own",
        "templates": ["a picture of {}."],
        "corpus": {**own, "part": "train", "text_column": "report"},
        "validation": {**own, **labels, "part": "val", "task": "zeroshot", "metric": "auroc"},
        "tasks": {"zeroshot": {"bootstrap": 5, "datasets": datasets}},
    }
    return CellSpec(
        suite_name="own", suite=suite, backbone="tiny", pretrained=None, method="taskres", options={}, seed=0,
        recipe=Recipe(epochs=1, batch_size=4), tasks=suite["tasks"], data_root=folder / "data",
    )  # fmt: skip


def test_adaptation_never_opens_the_test_data(tmp_path: Path) -> None:
    films(tmp_path)
    gone = {"dataset": "csv", "file": str(tmp_path / "gone.csv"), "kind": "multilabel", "classes": ["Edema"]}
    spec = cell_of(tmp_path, gone=gone)
    folder = Store(tmp_path / "out").cell(spec.folder)
    with pytest.raises(DataError, match=r"gone\.csv: cannot be read"):
        cell.run_cell(spec, folder, NullReporter())
    assert folder.exists("adapter.safetensors")
    assert folder.read_json("adapt.json")["data_transform"] == "shortest_crop-64x64"
    assert not folder.exists("zeroshot.json")


def test_what_is_missing_is_told_before_any_cell(tmp_path: Path) -> None:
    films(tmp_path)
    spec = cell_of(tmp_path, far={"dataset": "medmnist", "name": "pneumoniamnist", "part": "test"})
    with pytest.raises(DataError) as caught:
        prepare_suite.prepare_suite(spec.suite, spec.data_root, NullReporter())
    wanted = f"run_benchmark.py prepare medmnist --raw DIR --data-root {tmp_path}/data name=pneumoniamnist"
    assert wanted in str(caught.value)
    assert "(open access)" in str(caught.value)
