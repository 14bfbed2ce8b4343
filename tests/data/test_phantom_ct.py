"""The generator of CT volumes: determinism, findings and their maps, Hounsfield units, reports, files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from benchmark.backbones.volumes import VolumeFitting, check_hounsfield
from benchmark.console import NullReporter
from benchmark.data.dataset import LoadRequest
from benchmark.data.datasets import ct_rate
from benchmark.data.entries import load_dataset
from benchmark.data.prepare.images import ImageError
from benchmark.data.prepare.prepare import prepare
from benchmark.data.prepare.volumes import fitted
from benchmark.phantom.chest.studies import BLOCK
from benchmark.phantom.ct.anatomy import AXES, BOXES, FINDINGS, SIZE, SPACING, Scanner, draw_scan
from benchmark.phantom.ct.parts import ELSEWHERE, HERE, PARTS, SOURCE, draw_part
from benchmark.phantom.ct.reports import negatives, positives, report, sentences
from benchmark.phantom.ct.sheet import sheet
from benchmark.phantom.shapes import Array

FITTING = VolumeFitting(SIZE, spacing=SPACING, axes=AXES)
QUIET = Scanner(noise=1e-3)


def scan(finding: int | None, seed: int = 0, scanner: Scanner = QUIET) -> tuple[Array, Array]:
    present = np.arange(len(FINDINGS)) == (-1 if finding is None else finding)
    return draw_scan(np.random.default_rng(seed), present, scanner)


def test_a_volume_does_not_depend_on_how_many_are_asked_for() -> None:
    more, fewer = draw_part("test", 40, 0), draw_part("test", 5, 0)
    assert (fewer.images == more.images[:5]).all()
    assert fewer.manifest.equals(more.manifest.iloc[:5])
    assert not (draw_part("test", 2, 1).images == more.images[:2]).all()
    assert not (draw_part("val", 2, 0).images == more.images[:2]).all()


def test_some_patients_have_two_scans_and_no_patient_is_in_two_parts() -> None:
    names = {part: draw_part(part, BLOCK, 0).manifest["patient_id"] for part in PARTS}
    for patients in names.values():
        assert 0 < (patients.value_counts() == 2).sum() < patients.nunique()
    assert len(set().union(*names.values())) == sum(patients.nunique() for patients in names.values())


@pytest.mark.parametrize("finding", range(len(FINDINGS)), ids=FINDINGS)
def test_a_finding_leaves_a_map_and_changes_the_volume_there(finding: int) -> None:
    with_it, maps = scan(finding)
    assert maps.shape == (len(FINDINGS), *BOXES)
    assert maps.any(axis=(1, 2, 3)).tolist() == [row == finding for row in range(len(FINDINGS))]
    without, none = scan(None)
    assert not none.any()
    assert (np.abs(with_it.astype(int) - without) > 20).any()


@pytest.mark.parametrize("scanner", [SOURCE, HERE, ELSEWHERE])
def test_volumes_hold_hounsfield_units(scanner: Scanner) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        volume, _ = draw_scan(rng, rng.random(len(FINDINGS)) < 0.4, scanner)
        check_hounsfield(volume, "drawn")
        assert volume.dtype == np.int16


def test_reports_tell_what_is_there_in_words_that_prompts_ask_for() -> None:
    known = set(sentences())
    for seed in range(30):
        rng = np.random.default_rng(seed)
        present = rng.random(len(FINDINGS)) < 0.4
        told = [f"{one}." for one in report(rng, present).rstrip(".").split(". ")]
        assert set(told) <= known
        for name, there in zip(FINDINGS, present, strict=True):
            assert any(f"{one}." in told for one in positives(name)) == there
            assert not (there and any(f"{one}." in told for one in negatives(name)))
    for name in FINDINGS:
        assert f"{name.lower()} is present." in known
        assert f"{name.lower()} is not present." in known


def test_the_picture_shows_every_finding() -> None:
    picture = sheet()
    rows = picture.reshape(len(FINDINGS) + 1, -1, picture.shape[1])
    assert picture.dtype == np.uint8
    assert len({row.tobytes() for row in rows}) == len(FINDINGS) + 1


# --- through files, as CT-RATE publishes them -----------------------------------------------------------------


def write_tree(folder: Path, volumes: Array, texts: list[str], *, fixed: bool) -> Path:
    """Write volumes as CT-RATE's first release (blank headers, raw values) or its second one (headers and HU)."""
    nibabel = pytest.importorskip("nibabel")
    rows: dict[str, list[list[str]]] = {"labels": [], "reports": [], "metadata": []}
    for number, (volume, text) in enumerate(zip(volumes, texts, strict=True), start=1):
        offset = -8192 if number == 2 else -1024
        name = f"valid_{number}_a_1.nii.gz"
        release = "valid_fixed" if fixed else "valid"
        path = folder / "dataset" / release / f"valid_{number}" / f"valid_{number}_a" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        values = volume.transpose(2, 1, 0)  # to the left, the back, the head
        affine = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1.0]) if fixed else np.eye(4)
        nibabel.save(nibabel.Nifti1Image(values if fixed else values - np.int16(offset), affine), path)
        rows["labels"].append([name, *["0"] * len(ct_rate.FINDINGS)])
        rows["reports"].append([name, text, "Not given."])
        rows["metadata"].append([name, f"[{SPACING[2]}, {SPACING[1]}]", str(SPACING[0]), "1", str(offset)])
    heads = {
        "labels": ("multi_abnormality_labels/valid_predicted_labels.csv", ct_rate.FINDINGS),
        "reports": ("radiology_text_reports/validation_reports.csv", ("Findings_EN", "Impressions_EN")),
        "metadata": (
            "metadata/validation_metadata.csv", ("XYSpacing", "ZSpacing", "RescaleSlope", "RescaleIntercept"),
        ),
    }  # fmt: skip
    for key, (name, columns) in heads.items():
        path = folder / "dataset" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("VolumeName", *columns), *rows[key]])
    return folder


def test_both_releases_of_files_give_the_drawn_volumes(tmp_path: Path) -> None:
    drawn = draw_part("test", 3, 0)
    texts = drawn.manifest["text"].tolist()
    for fixed in (False, True):
        raw, root = (
            write_tree(tmp_path / f"raw-{fixed}", drawn.images, texts, fixed=fixed),
            tmp_path / f"{fixed}",
        )
        made = prepare(ct_rate.ct_rate, raw, root, fitting=FITTING, accept_split=True, workers=1)
        assert made.report["images_read"][f"hu {'stored' if fixed else 'metadata'}"] == 3
        data = ct_rate.ct_rate.load(ct_rate.RawDataset.Options(part="valid"), LoadRequest(root, FITTING))
        np.testing.assert_array_equal(data.pixels, np.clip(drawn.images, *FITTING.window))
        assert data.manifest["text"].tolist() == texts


def test_a_drawn_volume_whose_offset_was_added_twice_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "twice.npy"
    np.save(path, draw_part("test", 1, 0).images[0] - np.int16(1024))
    with pytest.raises(ImageError, match="the intercept was added twice"):
        fitted(path, FITTING, {"_spacing": "[15, 7.5, 7.5]"})


def test_the_dataset_is_kept(tmp_path: Path) -> None:
    entry = {"dataset": "phantom_ct", "part": "train", "n": 4}
    first, again = (load_dataset(entry, tmp_path, NullReporter(), FITTING) for _ in range(2))
    assert first.digests == again.digests
    assert first.pixels.shape == (4, *SIZE)
    assert first.labels() == list(FINDINGS)
