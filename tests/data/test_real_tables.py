"""Readers, splits, masks, boxes and label joins on all rows of the real tables; only their images are missing.

One image of each dataset is there as an empty file, since a reader refuses a folder without any.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmark.cli import main
from benchmark.data.datasets import chexpert_5x200, nih, openi, rsna, siim
from benchmark.data.datasets._sources import RawFolder, label_values
from benchmark.data.prepare import splits
from benchmark.data.prepare.raw import RawTable, checked_table
from tests.data import real, trees
from tests.data.opened import read

NIH_COUNTS = {
    "Atelectasis": 11559, "Cardiomegaly": 2776, "Effusion": 13317, "Infiltration": 19894, "Mass": 5782,
    "Nodule": 6331, "Pneumonia": 1431, "Pneumothorax": 5302, "Consolidation": 4667, "Edema": 2303,
    "Emphysema": 2516, "Fibrosis": 1686, "Pleural_Thickening": 3385, "Hernia": 227,
}  # fmt: skip


def touched(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def make_rsna(tables: Path, folder: Path) -> None:
    zipfile.ZipFile(tables / "kaggle_stage_2_train_labels.csv.zip").extractall(folder)
    touched(folder / "stage_2_train_images" / "0004cfab-14fd-4e49-80ba-63a80b6bddd6.dcm")


def make_siim(tables: Path, folder: Path) -> None:
    shutil.copy(tables / "siim-pneumothorax-train-rle.csv.gz", folder / "stage_2_train.csv.gz")
    touched(folder / "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm")


def make_nih(tables: Path, folder: Path) -> None:
    """The official test list is not at hand: the last 25,596 rows stand in for it."""
    shutil.copy(tables / "Data_Entry_2017_v2020.csv.gz", folder)
    names = pd.read_csv(tables / "Data_Entry_2017_v2020.csv.gz")["Image Index"]
    (folder / "test_list.txt").write_text("\n".join(names[-25596:]))
    touched(folder / "00000001_000.png")


def make_openi(tables: Path, folder: Path) -> None:
    with tarfile.open(tables / "NLMCXR_reports.tgz") as archive:
        archive.extractall(folder, filter="data")
    touched(folder / "CXR1_1_IM-0001-3001.png")


def make_chexpert(tables: Path, folder: Path) -> None:
    shutil.copy(tables / "chexpert_train.csv.gz", folder / "train.csv.gz")
    touched(folder / "CheXpert-v1.0-small/train/patient38614/study1/view1_frontal.jpg")


Raw = Callable[[str], Path]
MAKERS = {
    "rsna": make_rsna, "siim": make_siim, "nih": make_nih, "openi": make_openi, "chexpert_5x200": make_chexpert,
}  # fmt: skip


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Raw:
    """The raw folder of a dataset, made when it is first asked for."""
    tables, root = real.tables(), tmp_path_factory.mktemp("raw")

    def folder(name: str) -> Path:
        if not (path := root / name).exists():
            path.mkdir()
            MAKERS[name](tables, path)
        return path

    return folder


def statuses(name: str, source: RawTable, folder: Path) -> dict[str, str]:
    """Return the status of each list, after the checks that every preparation makes."""
    checked_table(name, source)
    lists = splits.check(name, source.ids, folder=folder).facts
    return {part: facts["status"] for part, facts in lists.items()}


def test_rsna_lists_are_the_published_ones_and_every_box_is_one_row(raw: Raw, tmp_path: Path) -> None:
    source = read(rsna, raw("rsna"))
    assert set(statuses("rsna", source, tmp_path).values()) == {"published"}
    table = source.table.set_index("image_id")
    headers = pd.read_csv(real.tables() / "kaggle_stage_2_train_images_dicom_headers.csv.gz")
    assert set(headers["PatientID"]) == set(table.index)
    rows = pd.read_csv(raw("rsna") / "stage_2_train_labels.csv").dropna()
    boxes = table["boxes"].map(json.loads)
    found = np.array([box for item in rows["patientId"].unique() for box in boxes[item]])
    ordered = rows.set_index("patientId").loc[rows["patientId"].unique()]
    corners = ordered[["x", "y"]].to_numpy()
    expected = np.hstack([corners, corners + ordered[["width", "height"]].to_numpy()])
    np.testing.assert_array_equal(found, expected)
    assert len(found) == boxes.map(len).sum() == 9555
    assert found.min() >= 0
    assert found.max() <= 1024
    positive = table["label_Pneumonia"] == "1"
    assert (positive.sum(), (positive & (table["split"] == "test")).sum()) == (6012, 887)
    assert (positive == (boxes.map(len) > 0)).all()


def test_siim_lists_are_the_published_ones_and_every_mask_decodes(raw: Raw, tmp_path: Path) -> None:
    source = read(siim, raw("siim"))
    found = statuses("siim", source, tmp_path)
    # which images are tested hangs on the order of rows, and nobody published the hash of their list
    assert found.pop("test") == splits.FIRST_HERE
    assert set(found.values()) == {"published"}
    table = source.table
    positive = table["label_Pneumothorax"] == "1"
    assert (positive.sum(), (positive & (table["split"] == "test")).sum()) == (2669, 838)
    codes = [code for text in table["_runs"] for code in json.loads(text)]
    areas = np.array([np.count_nonzero(siim.decode_runs(code, (1024, 1024))) for code in codes])
    np.testing.assert_array_equal(areas, [sum(map(int, code.split()[1::2])) for code in codes])
    assert (len(areas), areas.min(), areas.sum()) == (3576, 55, 39_729_957)
    for code in codes[::100]:
        mask = siim.decode_runs(code, (1024, 1024))
        np.testing.assert_array_equal(siim.decode_runs(trees.runs(mask), mask.shape), mask)
    most = table.loc[table["_runs"].map(lambda text: len(json.loads(text))).idxmax()]
    assert siim.mask(most, (1024, 1024)).sum() <= sum(
        siim.decode_runs(code, (1024, 1024)).sum() for code in json.loads(most["_runs"])
    )


def test_nih_labels_patients_and_parts_of_every_row(raw: Raw, tmp_path: Path) -> None:
    source = read(nih, raw("nih"), images="all")
    lists = splits.check("nih", source.ids, folder=tmp_path).facts
    assert {part: facts["status"] for part, facts in lists.items()} == {
        "all": "published", "val": splits.FIRST_HERE,
    }  # fmt: skip
    table = source.table
    assert table["split"].value_counts().to_dict() == {"train": 86524, "test": 20477, "val": 5119}
    labels = table[[f"label_{name}" for name in NIH_COUNTS]] == "1"
    assert dict(zip(NIH_COUNTS, labels.sum().tolist(), strict=True)) == NIH_COUNTS
    rows = pd.read_csv(raw("nih") / "Data_Entry_2017_v2020.csv.gz")
    assert (labels.sum(axis=1) == 0).tolist() == (rows["Finding Labels"] == "No Finding").tolist()
    assert table["patient_id"].astype(int).tolist() == rows["Patient ID"].tolist()
    assert table["patient_id"].nunique() == 30805
    boxed = pd.read_csv(real.tables() / "BBox_List_2017.csv.gz")["Image Index"]
    assert set(boxed.str.removesuffix(".png")) <= set(table["image_id"])


def test_openi_images_and_texts_of_every_report(raw: Raw, tmp_path: Path) -> None:
    source = read(openi, raw("openi"), views="all")
    assert statuses("openi", source, tmp_path) == {"all": "published"}
    assert dict(source.steps) == {
        "images with a report": 7470, "report with fewer than 3 words": -40, "kept": 7430,
    }  # fmt: skip
    table = source.table
    uids = table["image_id"].str.extract(r"^CXR(\d+)_")[0]
    assert (uids == table["study_id"]).all()  # the image's name says its report
    assert table["study_id"].nunique() == 3826
    twice = table.loc[table["study_id"] == "2415", "text"]
    assert twice.str.count("The heart is mildly enlarged").tolist() == [1] * len(twice) != []


def test_chexpert_every_label_and_path_is_read_and_the_rule_draws_200_of_each(raw: Raw) -> None:
    source = RawFolder("CheXpert", chexpert_5x200.ACCESS, raw("chexpert_5x200"))
    names = ("No Finding", *chexpert_5x200.CLASSES, *chexpert_5x200.OTHERS)
    path = source.need("train.csv")
    table = source.table(path, ("Path", *names))
    counts = {name: label_values(path, table[name]).value_counts().to_dict() for name in names}
    assert len(table) == 223414
    assert counts["Edema"] == {"1": 52246, "0": 20726, "-1": 12984, "": 137458}
    assert counts["No Finding"] == {"1": 22381, "": 201033}
    assert [chexpert_5x200._inner(path, text) for text in table["Path"][::50]] == [
        text.removeprefix("CheXpert-v1.0-small/") for text in table["Path"][::50]
    ]
    drawn = read(chexpert_5x200, raw("chexpert_5x200"), rebuild=True).table
    assert {name: (drawn[f"label_{name}"] == "1").sum() for name in chexpert_5x200.CLASSES} == dict.fromkeys(
        chexpert_5x200.CLASSES, 200
    )
    others = drawn[[f"label_{name}" for name in chexpert_5x200.OTHERS]]
    assert set(others.to_numpy().ravel()) <= {"0", ""}
    assert drawn["image_id"].str.endswith("frontal").all()


# --- partial downloads --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def partial(raw: Raw, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RSNA's table with three of its images, one of them cut off."""
    folder = shutil.copytree(raw("rsna"), tmp_path_factory.mktemp("partial") / "rsna")
    rows = pd.read_csv(folder / "stage_2_train_labels.csv")
    for i, item in enumerate(rows["patientId"][:3]):
        trees.write_dicom(folder / "stage_2_train_images" / f"{item}.dcm", trees.pixels(i))
    cut = folder / "stage_2_train_images" / f"{rows['patientId'][2]}.dcm"
    cut.write_bytes(cut.read_bytes()[:700])
    return folder


def prepare(capsys: pytest.CaptureFixture[str], folder: Path, data: Path, *flags: str) -> tuple[int, str]:
    words = ["prepare", "rsna", "--raw", str(folder), "--data-root", str(data), "--size", "8"]
    code = main([*words, "--num-workers", "1", *flags])
    said = capsys.readouterr()
    return code, " ".join((said.out + said.err).split())


def test_a_partial_download_stops_or_is_left_out_and_counted(
    partial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = prepare(capsys, partial, tmp_path)
    assert code == 2
    assert "26,681 of 26,684 image files are missing or empty" in said
    assert "Complete the download and run the same command again" in said
    assert not (tmp_path / "rsna" / "prepare_report.json").exists()
    code, said = prepare(capsys, partial, tmp_path, "--on-bad-image", "skip")
    assert code == 0
    report = json.loads((tmp_path / "rsna" / "prepare_report.json").read_text())
    assert report["images"] == 2
    assert report["steps"][-2:] == [["images that cannot be read", -26682], ["images in the manifest", 2]]
    assert report["info"]["notes"] == [
        "26682 images that cannot be read were left out (of 26684 in all parts together)"
    ]
    assert {facts["status"] for facts in report["splits"].values()} == {"published"}


def test_a_table_cut_off_is_another_split_until_it_is_accepted(
    partial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(partial, tmp_path / "rsna")
    path = folder / "stage_2_train_labels.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:20001]) + "\n")
    code, said = prepare(capsys, folder, tmp_path / "data", "--on-bad-image", "skip")
    assert code == 2
    assert "list 'all' is not the published split:" in said
    assert "instead of 26,684" in said
    code, said = prepare(capsys, folder, tmp_path / "data", "--on-bad-image", "skip", "--accept-split")
    assert code == 0
    report = json.loads((tmp_path / "data" / "rsna" / "prepare_report.json").read_text())
    assert len(report["info"]["notes"]) == 6  # images left out, and the five lists
    assert all(facts["status"].startswith(splits.NOT_PUBLISHED) for facts in report["splits"].values())
