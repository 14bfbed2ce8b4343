"""CT volumes: reading, fitting, the check of Hounsfield units, and the readers of CT-RATE and RAD-ChestCT."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmark.backbones.volumes import DEFAULT, VolumeFitting, check_hounsfield
from benchmark.console import NullReporter
from benchmark.data.dataset import LoadRequest
from benchmark.data.datasets import ct_rate, rad_chestct
from benchmark.data.entries import load_dataset
from benchmark.data.prepare import splits
from benchmark.data.prepare.images import ImageError
from benchmark.data.prepare.prepare import BadImagesError, prepare
from benchmark.data.prepare.volumes import Scan, fitted, hounsfield, read_scan, turned
from benchmark.data.samples import pairs
from benchmark.errors import ConfigError, DataError
from benchmark.preprocess import Fitting
from tests.data import real

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")

SMALL = VolumeFitting((6, 12, 10), spacing=(20.0, 15.0, 15.0), axes="SLP")
SHAPE = (14, 12, 8)
"""Voxels to the left, to the back, to the head, of the drawn chest."""
STEP = (14.0, 16.0, 15.0)


def chest(seed: int = 0) -> np.ndarray:
    """Draw a chest ``[left, back, head]`` in HU: air, soft tissue, two lungs of other sizes, one bright voxel."""
    rng = np.random.default_rng(seed)
    values = np.full(SHAPE, -1000)
    values[2:12, 2:10, 1:] = 40
    values[3:6, 3:7, 2:7] = -850
    values[8:11, 3:8, 2:6] = -820
    values[7, 5, 5] = 900
    return (values + rng.integers(-9, 10, SHAPE)).astype(np.int16)


def write_nifti(path: Path, values: np.ndarray, axes: str = "LPS", step: Sequence[float] = STEP) -> Path:
    """Write a volume whose axes point as ``axes`` says; an empty text leaves the header blank."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.eye(4)
    if axes:
        affine = np.zeros((4, 4))
        affine[3, 3] = 1
        for column, letter in enumerate(axes):
            row = next(i for i, pair in enumerate(("LR", "PA", "IS")) if letter in pair)
            affine[row, column] = step[column] * (1 if letter in "RAS" else -1)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def write_series(folder: Path, values: np.ndarray, step: Sequence[float] = STEP) -> Path:
    """Write the slices of a volume ``[left, back, head]`` as DICOM files whose names do not follow their places."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(parents=True)
    for k in range(values.shape[2]):
        item = Dataset()
        item.file_meta = FileMetaDataset()
        item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        item.SOPClassUID, item.SOPInstanceUID, item.SeriesInstanceUID = CTImageStorage, f"1.2.{k + 1}", "1.2"
        item.Rows, item.Columns = values.shape[1], values.shape[0]
        item.PixelSpacing, item.ImageOrientationPatient = [step[1], step[0]], [1, 0, 0, 0, 1, 0]
        item.ImagePositionPatient = [0, 0, k * step[2]]
        item.RescaleSlope, item.RescaleIntercept = 1, -1024
        item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
        item.BitsAllocated = item.BitsStored = 16
        item.HighBit, item.PixelRepresentation = 15, 0
        item.PixelData = (values[:, :, k].T + 1024).astype("<u2").tobytes()
        item.save_as(folder / f"{(k * 5) % values.shape[2]:02d}-{k}.dcm", enforce_file_format=True)
    return folder


# ---------------------------------------------------------------------------- fitting
def test_a_ramp_keeps_its_slope() -> None:
    ramp = np.broadcast_to(np.arange(40.0)[None, None] * 10, (10, 20, 40))
    fitting = VolumeFitting((20, 40, 80), spacing=(1.0, 1.0, 1.0))
    values = fitting.volume(ramp, (2.0, 2.0, 2.0))
    inner = np.diff(values[5, 5, 2:-2])
    np.testing.assert_allclose(inner, 5.0, atol=1e-4)


def test_what_is_cut_and_padded_lies_where_it_should() -> None:
    fitting = VolumeFitting((4, 5, 6), spacing=(1.0, 1.0, 1.0), window=(-1000, 1000))
    marked = np.zeros((7, 2, 6))
    marked[3, 1, 4] = 500
    found = fitting.cropped(marked)
    assert found.shape == (4, 5, 6)
    assert np.argwhere(found == 500).tolist() == [[2, 2, 4]]  # 7 -> 4 begins at 1; 2 -> 5 has one in front
    assert (found[:, 0] == -1000).all()
    assert (found[:, 3:] == -1000).all()


@pytest.mark.parametrize(
    "fitting", [DEFAULT, SMALL, replace(SMALL, window=(-1150, 350), rule="hlip", axes="SPL")]
)
def test_a_fitting_has_a_name_that_can_be_read_back(fitting: VolumeFitting) -> None:
    assert VolumeFitting.parse(fitting.name) == fitting
    assert fitting.on("squash") == fitting


@pytest.mark.parametrize(
    "name", ["volume-1x2-3x4x5mm-slp-m1to1-hlip", "volume", f"{SMALL.name}x", "volume-1x2x3"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        VolumeFitting.parse(name)


def test_names_of_pictures_are_read_as_before() -> None:
    assert VolumeFitting.parse("shortest_crop-224x224") == Fitting((224, 224), "shortest_crop")


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"axes": "SLR"}, "axes"), ({"spacing": (0.0, 1.0, 1.0)}, "spacing"), ({"window": (5, 5)}, "window"),
     ({"size": (2, 2)}, "size"), ({"rule": "mine"}, "rule")],
)  # fmt: skip
def test_impossible_fittings_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(SMALL, **changes)


# ---------------------------------------------------------------------------- Hounsfield units
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values - 1024, "soft tissue lies near -1024, so the intercept was added twice"),
        (lambda values: values + 1024, "slope and intercept were not applied"),
        (lambda values: np.full_like(values, -1024), "every voxel is -1024"),
        (lambda values: values.astype(np.float32) * np.nan, "not finite"),
        (lambda values: values // 2, "not Hounsfield units of a chest"),
    ],
)
def test_values_that_are_not_hounsfield_units_are_refused_by_name(change: Any, said: str) -> None:
    check_hounsfield(chest(), "fine")
    with pytest.raises(DataError, match=said) as caught:
        check_hounsfield(change(chest()), "scan.nii")
    assert str(caught.value).startswith("scan.nii: ")


@pytest.mark.parametrize("intercept", [-1024, -8192])
def test_the_table_is_used_where_the_content_says_so(intercept: int) -> None:
    row = {"_slope": "1", "_intercept": str(intercept)}
    values = chest().astype(np.int32)
    for stored, source in ((values, "stored"), (values - intercept, "metadata")):
        found, said = hounsfield(Scan(stored, "LPS", STEP, "", ""), row)
        assert said == source
        np.testing.assert_array_equal(found, values)
    with pytest.raises(ImageError, match="slope and intercept were not applied|not Hounsfield"):
        hounsfield(Scan(values - intercept, "LPS", STEP, "", ""), {})


def test_padding_below_everything_does_not_hide_that_values_are_raw() -> None:
    """Raw files with -2000 outside the field of view: their lowest values look like air."""
    values = chest().astype(np.int32)
    raw = values + 1024
    raw[0] = -2000
    found, said = hounsfield(Scan(raw, "LPS", STEP, "", ""), {"_slope": "1", "_intercept": "-1024"})
    assert said == "metadata"
    np.testing.assert_array_equal(found[1:], values[1:])


# ---------------------------------------------------------------------------- files
@pytest.mark.parametrize("axes", ["LPS", "RAS", "SPL", "IAR"])
def test_the_affine_says_where_axes_point(tmp_path: Path, axes: str) -> None:
    values, step = turned(chest(), "LPS", STEP, axes)
    found, small, facts = fitted(
        write_nifti(tmp_path / "a.nii.gz", np.ascontiguousarray(values), axes, step), SMALL
    )
    plain, _, _ = fitted(write_nifti(tmp_path / "b.nii", chest()), SMALL)
    np.testing.assert_array_equal(found, plain)
    assert found.dtype == np.int16
    assert found.shape == SMALL.size
    assert small.shape == (32, 32)
    assert facts["notes"] == {"volume": "nifti", "hu": "stored"}


def test_a_series_of_slices_is_the_same_volume(tmp_path: Path) -> None:
    series, _, facts = fitted(write_series(tmp_path / "series", chest()), SMALL)
    file, _, _ = fitted(write_nifti(tmp_path / "a.nii.gz", chest()), SMALL)
    np.testing.assert_array_equal(series, file)
    assert facts["notes"]["volume"] == "dicom"
    next((tmp_path / "series").glob("*-3.dcm")).unlink()
    with pytest.raises(ImageError, match="slices are missing or stand twice: steps from 15 to 30 mm"):
        read_scan(tmp_path / "series")


def test_two_series_in_one_folder_are_refused(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", chest())
    path = next(folder.iterdir())
    item = pydicom.dcmread(path)
    item.SeriesInstanceUID = "1.3"
    item.save_as(path)
    with pytest.raises(ImageError, match="2 series in one folder"):
        read_scan(folder)


def test_arrays_say_their_spacing_elsewhere_and_hold_no_objects(tmp_path: Path) -> None:
    values, step = turned(chest(), "LPS", STEP, "SPL")
    np.savez(tmp_path / "a.npz", ct=values)
    np.save(tmp_path / "a.npy", values)
    expected, _, _ = fitted(write_nifti(tmp_path / "a.nii", chest()), SMALL)
    for name in ("a.npz", "a.npy"):
        found, _, _ = fitted(tmp_path / name, SMALL, {"_spacing": json.dumps(list(step))})
        np.testing.assert_array_equal(found, expected)
        with pytest.raises(ImageError, match="does not say its spacing"):
            read_scan(tmp_path / name)
    np.savez(tmp_path / "bad.npz", ct=np.array([{}], dtype=object))
    with pytest.raises(ImageError, match="cannot be read as an array of numbers"):
        read_scan(tmp_path / "bad.npz")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.nii.gz", b"", "empty file"),
        ("a.nii.gz", b"<!DOCTYPE html>", "a web page"),
        ("a.nii", b"nothing of that kind" * 40, "damaged NIfTI"),
        ("a.png", b"\x89PNG....", "not a volume: expected .nii"),
        ("a.npy", b"\x93NUMPY" + b"0" * 90, "cannot be read as an array"),
    ],
)
def test_damaged_files_are_one_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=said) as caught:
        read_scan(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_what_declares_more_than_fits_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", chest())
    with pytest.raises(ImageError, match="14x12x8, more than 1,000 voxels"):
        read_scan(path, max_voxels=1000)
    flat = write_nifti(tmp_path / "b.nii.gz", chest()[..., None].repeat(2, axis=3))
    with pytest.raises(ImageError, match="expected a volume of three axes"):
        read_scan(flat)


# ---------------------------------------------------------------------------- a real CT
@pytest.fixture(scope="module")
def real_ct() -> Path:
    return real.folder("ct")


def test_a_real_ct_holds_hounsfield_units_and_a_second_offset_is_refused(real_ct: Path) -> None:
    scan = read_scan(real_ct / "example_ct_sm.nii.gz")
    assert (scan.values.shape, scan.axes, scan.spacing) == ((122, 101, 30), "RAS", (3.0, 3.0, 3.0))
    check_hounsfield(scan.values, "real")
    with pytest.raises(DataError, match="the intercept was added twice"):
        check_hounsfield(scan.values - 1024, "real")


def test_a_real_series_and_its_nifti_file_give_the_same_volume(real_ct: Path, tmp_path: Path) -> None:
    series = read_scan(real_ct / "example_ct_dicom")
    slices = sorted(
        (pydicom.dcmread(path) for path in (real_ct / "example_ct_dicom").iterdir()),
        key=lambda item: float(item.ImagePositionPatient[2]),
    )
    # columns, rows, slices with the affine that DICOM's own fields give; NIfTI's first two axes point the other way
    values = np.stack(
        [item.pixel_array.T * float(item.RescaleSlope) + float(item.RescaleIntercept) for item in slices], -1
    )
    first, last = (np.array(item.ImagePositionPatient, dtype=float) for item in (slices[0], slices[-1]))
    turns = np.array(slices[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, 0] = turns[0] * float(slices[0].PixelSpacing[1])
    affine[:3, 1] = turns[1] * float(slices[0].PixelSpacing[0])
    affine[:3, 2] = (last - first) / (len(slices) - 1)
    nibabel.save(
        nibabel.Nifti1Image(values.astype(np.int16), np.diag([-1, -1, 1, 1]) @ affine), tmp_path / "a.nii.gz"
    )
    file = read_scan(tmp_path / "a.nii.gz")
    (ours, step), (theirs, other) = (
        turned(one.values, one.axes, one.spacing, "SLP") for one in (series, file)
    )
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(step, other, rtol=1e-5)


# ---------------------------------------------------------------------------- own volumes
def test_own_volumes_of_three_kinds_by_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "benchmark.data.prepare.prepare.usable_cores", lambda: 1
    )  # no process for three small files
    write_nifti(tmp_path / "a.nii.gz", chest(1))
    write_series(tmp_path / "b", chest(2))
    values, step = turned(chest(3), "LPS", STEP, "SPL")
    np.save(tmp_path / "c.npy", values)
    rows = [
        ("a.nii.gz", "a nodule", "1", ""),
        ("b", "clear lungs", "0", ""),
        ("c.npy", "a mass", "1", json.dumps(list(step))),
    ]
    with (tmp_path / "own.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "text", "Nodule", "mm"), *rows])
    entry = {
        "dataset": "csv",
        "file": str(tmp_path / "own.csv"),
        "label_columns": ["Nodule"],
        "spacing_column": "mm",
    }
    data = load_dataset(entry, tmp_path / "data", NullReporter(), SMALL)
    assert data.pixels.shape == (3, *SMALL.size)
    assert data.pixels.dtype == np.int16
    expected, _, _ = fitted(tmp_path / "a.nii.gz", SMALL)
    np.testing.assert_array_equal(data.pixels[0], expected)
    corpus = pairs("csv", data)
    assert corpus.texts == ["a nodule", "clear lungs", "a mass"]
    again = load_dataset(entry, tmp_path / "data", NullReporter(), SMALL, make=False)  # all there
    assert again.digests == data.digests
    np.save(tmp_path / "c.npy", values - 1024)
    with pytest.raises(
        DataError, match=r"row 4, column 'path': image 'c.npy': not Hounsfield units: soft tissue lies"
    ):
        load_dataset(entry, tmp_path / "data", NullReporter(), SMALL)


# ---------------------------------------------------------------------------- CT-RATE
def make_ct_rate(folder: Path, *, fixed: bool, scans: int = 3, part: str = "valid") -> Path:
    """Write a small tree of one part, as the first release (blank headers, raw values) or the second."""
    release, stem = f"{part}_fixed" if fixed else part, ct_rate.PARTS[part]
    labels, reports, metadata = [], [], []
    for i in range(1, scans + 1):
        for reconstruction in (1, 2):
            name = f"{part}_{i}_a_{reconstruction}.nii.gz"
            offset = -8192 if i == 2 else -1024
            path = folder / "dataset" / release / f"{part}_{i}" / f"{part}_{i}_a" / name
            values = chest(i).astype(np.int16)
            write_nifti(path, values if fixed else values - offset, "LPS" if fixed else "")
            labels.append([name, *[str(int(i == j)) for j in range(len(ct_rate.FINDINGS))]])
            reports.append([name, f"Findings {i}.\n Nodule.", "Not given." if i == 1 else f"Impression {i}."])
            metadata.append([name, f"[{STEP[0]}, {STEP[1]}]", str(STEP[2]), "1", str(offset)])
    tables = {
        f"multi_abnormality_labels/{part}_predicted_labels.csv": (["VolumeName", *ct_rate.FINDINGS], labels),
        f"radiology_text_reports/{stem}_reports.csv": (["VolumeName", "Findings_EN", "Impressions_EN"], reports),
        f"metadata/{stem}_metadata.csv": (
            ["VolumeName", "XYSpacing", "ZSpacing", "RescaleSlope", "RescaleIntercept"], metadata,
        ),
    }  # fmt: skip
    for name, (header, rows) in tables.items():
        path = folder / "dataset" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    return folder


def test_patients_of_the_training_part_of_ct_rate_are_held_out(tmp_path: Path) -> None:
    raw = make_ct_rate(tmp_path, fixed=True, scans=6, part="train")
    found = {}
    for count in (0, 2, 3, 99):
        table = ct_rate.read(raw, ct_rate.Options(held_out=count, reconstructions="all")).table
        assert set(table["split"]) <= {"train", "held_out"}
        found[count] = set(table.loc[table["split"] == "held_out", "patient_id"])
        assert len(found[count]) == min(count, 6)
        assert not found[count] & set(table.loc[table["split"] == "train", "patient_id"])
    assert found[2] < found[3]
    valid = ct_rate.read(make_ct_rate(tmp_path / "valid", fixed=True), ct_rate.Options(held_out=2)).table
    assert set(valid["split"]) == {"valid"}


def test_both_releases_of_ct_rate_give_the_same_volumes(tmp_path: Path) -> None:
    made = {}
    for fixed in (True, False):
        raw, root = make_ct_rate(tmp_path / f"raw-{fixed}", fixed=fixed), tmp_path / f"data-{fixed}"
        found = prepare(ct_rate.ct_rate, raw, root, fitting=SMALL, accept_split=True, workers=1)
        assert found.report["images_read"] == {
            f"hu {'stored' if fixed else 'metadata'}": 3,
            "volume nifti": 3,
        }
        made[fixed] = ct_rate.ct_rate.load(ct_rate.RawDataset.Options(part="valid"), LoadRequest(root, SMALL))
        assert not prepare(ct_rate.ct_rate, raw, root, fitting=SMALL, accept_split=True).made
    np.testing.assert_array_equal(made[True].pixels, made[False].pixels)
    data = made[True]
    assert data.manifest["image_id"].tolist() == ["valid_1_a_1", "valid_2_a_1", "valid_3_a_1"]
    assert data.manifest["patient_id"].tolist() == ["valid_1", "valid_2", "valid_3"]
    assert data.labels() == list(ct_rate.FINDINGS)
    assert pairs("ct_rate", data).texts[:2] == ["Findings 1. Nodule.", "Findings 2. Nodule. Impression 2."]


def test_volumes_that_were_rescaled_twice_are_named_and_can_be_left_out(tmp_path: Path) -> None:
    raw = make_ct_rate(tmp_path / "raw", fixed=True)
    bad = raw / "dataset/valid_fixed/valid_2/valid_2_a/valid_2_a_1.nii.gz"
    write_nifti(bad, chest(2) - 1024)
    with pytest.raises(
        BadImagesError, match="valid_2_a_1.nii.gz: not Hounsfield units: soft tissue lies near -1024"
    ):
        prepare(ct_rate.ct_rate, raw, tmp_path / "data", fitting=SMALL, accept_split=True, workers=1)
    how = {"fitting": SMALL, "accept_split": True, "workers": 1, "on_bad_image": "skip"}
    found = prepare(ct_rate.ct_rate, raw, tmp_path / "data", **how)  # type: ignore[arg-type]
    assert found.report["images"] == 2
    data = ct_rate.ct_rate.load(ct_rate.RawDataset.Options(), LoadRequest(tmp_path / "data", SMALL))
    assert data.pixels.shape == (2, *SMALL.size)


def test_pictures_and_volumes_are_not_mixed_up(tmp_path: Path) -> None:
    raw = make_ct_rate(tmp_path / "raw", fixed=True)
    with pytest.raises(ConfigError, match="dataset 'ct_rate' has CT volumes, the fitting is one of pictures"):
        prepare(ct_rate.ct_rate, raw, tmp_path / "data", fitting=Fitting((64, 64)), accept_split=True)
    with pytest.raises(
        DataError, match=r"prepare ct_rate --raw DIR --data-root .* --transform volume-6x12x10"
    ):
        ct_rate.ct_rate.load(ct_rate.RawDataset.Options(), LoadRequest(tmp_path / "data", SMALL))
    with pytest.raises(DataError, match="as volume-240x480x480|prepare ct_rate --raw DIR"):
        ct_rate.ct_rate.load(ct_rate.RawDataset.Options(), LoadRequest(tmp_path / "data", DEFAULT))


def test_all_real_label_rows_of_ct_rate(tmp_path: Path) -> None:
    tables = real.folder("ct_tables")
    labels, metadata = (tmp_path / "dataset" / name for name in ("multi_abnormality_labels", "metadata"))
    for folder in (labels, metadata):
        folder.mkdir(parents=True)
    shutil.copy(tables / "ct_rate_valid_labels.csv", labels / "valid_predicted_labels.csv")
    shutil.copy(tables / "ct_rate_valid_metadata.csv", metadata / "validation_metadata.csv")
    (tmp_path / "valid_1_a_1.nii.gz").touch()
    every = ct_rate.read(tmp_path, ct_rate.Options(reconstructions="all"))
    first = ct_rate.read(tmp_path, ct_rate.Options())
    assert (len(every.table), len(first.table)) == (3039, 1564)
    assert every.table["patient_id"].nunique() == 1304
    checked = splits.check("ct_rate", first.ids, folder=tmp_path)
    assert {name: facts["status"] for name, facts in checked.facts.items()} == {
        "valid volumes": "published",
        "valid first reconstruction": "published",
    }
    shown = (every.table.filter(like="label_") == "1").sum()
    assert (shown["label_Lung nodule"], shown["label_Pericardial effusion"]) == (1361, 226)
    # labels never differ between the reconstructions of a scan
    scans = every.table.groupby("study_id").first()
    assert (
        scans.filter(like="label_").sort_index()
        == first.table.set_index("study_id").filter(like="label_").sort_index()
    ).all(axis=None)
    offsets = every.table["_intercept"].value_counts()
    assert offsets.to_dict() == {"-1024": 2189, "-8192": 850}


# ---------------------------------------------------------------------------- RAD-ChestCT
COUNTS = {
    "hlip16": {"Arterial wall calcification": 2562, "Pulmonary fibrotic sequela": 478, "Lung opacity": 1955},
    "radfinder_standard": {"Medical material": 1155, "Pulmonary fibrotic sequela": 786, "Lymphadenopathy": 598},
    "radfinder_extended": {
        "Medical material": 1329, "Arterial wall calcification": 1073, "Coronary artery wall calcification": 1968,
        "Lung opacity": 2416, "Pulmonary fibrotic sequela": 1391, "Mosaic attenuation pattern": 118,
        "Bronchiectasis": 597,
    },
}  # fmt: skip
"""Volumes of 3,630 with a finding, counted by another program."""


@pytest.fixture(scope="module")
def rad_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tables, folder = real.folder("ct_tables"), tmp_path_factory.mktemp("rad")
    for part in rad_chestct.PARTS:
        shutil.copy(tables / f"rad_chestct_img{part}.csv", folder / f"img{part}.csv")
    shutil.copy(tables / "rad_chestct_Summary_3630.csv", folder / "Summary_3630.csv")
    (folder / "tst34780.npz").touch()
    return folder


@pytest.mark.parametrize("name", COUNTS)
def test_all_real_rows_of_rad_chestct_under_each_map(rad_tables: Path, name: Any, tmp_path: Path) -> None:
    table = rad_chestct.read(rad_tables, rad_chestct.Options(label_map=name))
    shown = {
        key.removeprefix("label_"): int((table.table[key] == "1").sum())
        for key in table.table
        if "label_" in key
    }
    assert len(table.table) == 3630
    assert table.table["patient_id"].nunique() == 3072
    assert {finding: shown[finding] for finding in COUNTS[name]} == COUNTS[name]
    assert splits.check("rad_chestct", table.ids, folder=tmp_path).facts["all"]["status"] == "published"


def test_every_map_has_its_hash_and_names_findings_of_ct_rate() -> None:
    maps = rad_chestct.label_maps()
    assert {name: (len(found), rad_chestct.map_sha256(name)[:16]) for name, found in maps.items()} == {
        "hlip16": (15, "e705e1294ab7ec65"),
        "radfinder_standard": (17, "de7ade23f508fbc3"),
        "radfinder_extended": (18, "457acaebf49bfb3f"),
    }
    assert all(set(found) <= set(ct_rate.FINDINGS) for found in maps.values())


def test_rad_chestct_is_prepared_under_a_named_map(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    columns = sorted(
        {column for found in rad_chestct.label_maps()["radfinder_extended"].values() for column in found}
    )
    columns = [f"{column}*{place}" for column in columns for place in ("left_lung", "right_lung")]
    extra = ["calcification*aorta"]
    frame = pd.DataFrame(0, index=range(2), columns=["NoteAcc_DEID", *columns, *extra])
    frame["NoteAcc_DEID"] = ["trn00001", "trn00002"]
    frame.loc[1, ["scarring*right_lung"]] = 1
    frame.to_csv(raw / "imgtrain_Abnormality_and_Location_Labels.csv", index=False)
    values, _ = turned(chest(), "LPS", STEP, "SPL")
    for name in frame["NoteAcc_DEID"]:
        np.savez(raw / f"{name}.npz", ct=values)
    fine = replace(SMALL, spacing=(1.0, 1.0, 1.0))
    for name, positive in (("hlip16", "0"), ("radfinder_standard", "1")):
        found = prepare(
            rad_chestct.rad_chestct, raw, tmp_path / "data", fitting=fine, accept_split=True, workers=1,
            options={"label_map": name},
        )  # fmt: skip
        assert any(name in text and "sha256" in text for text, _ in found.report["steps"])
        entry = {"dataset": "rad_chestct", "label_map": name, "part": "train"}
        data = load_dataset(entry, tmp_path / "data", NullReporter(), fine)
        assert data.manifest["label_Pulmonary fibrotic sequela"].tolist() == [0.0, float(positive)]
        assert data.info["options"] == {"label_map": name}
    with pytest.raises(ConfigError, match="label_map"):
        load_dataset({"dataset": "rad_chestct", "label_map": "mine"}, tmp_path / "data", NullReporter(), fine)
