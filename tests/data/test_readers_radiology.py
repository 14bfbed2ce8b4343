"""Readers of the evaluation sets of chest radiographs, on tiny folders in the exact layout of the downloads."""

from __future__ import annotations

import hashlib
import json
import shutil

import pandas as pd
import pytest

from benchmark.data.datasets import chexpert_5x200, nih, rsna, siim
from benchmark.data.prepare.splits import published
from benchmark.errors import DataError
from tests.data import trees
from tests.data.opened import read


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    return {
        "rsna": trees.make_rsna(root / "rsna"),
        "siim": trees.make_siim(root / "siim"),
        "nih": trees.make_nih(root / "nih"),
        "chexpert": trees.make_chexpert(root / "chexpert"),
    }


@pytest.fixture
def copy(raw, tmp_path):
    """A copy of a raw folder that a test may damage."""
    return lambda name: shutil.copytree(raw[name], tmp_path / name)


def rows(source):
    """Return the table by image id, after checking what holds for every reader."""
    table = source.table.set_index("image_id")
    assert table.index.is_unique
    assert all(isinstance(value, str) for column in table for value in table[column])
    kept = dict(source.steps)["kept"]
    assert kept == len(table)
    return table


def files_exist(source, folder):
    return all((folder / name).is_file() for name in source.table["file"])


# --- RSNA ---------------------------------------------------------------------------------------------------


def test_rsna_groups_the_rows_of_an_image_into_boxes(raw):
    table = rows(read(rsna, raw["rsna"]))
    boxes = {item: json.loads(text) for item, text in table["boxes"].items()}
    assert boxes[trees.rsna_id(9)] == [[10, 12, 30, 42], [40, 8.5, 56, 48.5]]
    assert boxes[trees.rsna_id(3)] == [[10, 12, 30, 42]]
    assert boxes[trees.rsna_id(1)] == []
    assert {item for item, found in boxes.items() if found} == set(
        table.index[table["label_Pneumonia"] == "1"]
    )
    assert (table["label_Pneumonia"] != table["label_No Finding"]).all()


def test_rsna_parts_are_disjoint_and_complete(raw):
    source = read(rsna, raw["rsna"])
    table = rows(source)
    assert files_exist(source, raw["rsna"])
    assert table["split"].value_counts().to_dict() == {"train": 51, "test": 9}
    detection = table["split_detection"]
    assert ((detection != "") == (table["label_Pneumonia"] == "1")).all()
    assert detection.value_counts().to_dict() == {"": 40, "train": 14, "val": 3, "test": 3}
    assert sorted(source.ids["test"]) == sorted(table.index[table["split"] == "test"])


def test_rsna_patients_come_from_the_mapping_to_nih(raw, copy):
    table = rows(read(rsna, raw["rsna"]))
    assert table["study_id"][trees.rsna_id(3)] == trees.nih_name(6).removesuffix(".png")
    assert table["patient_id"][trees.rsna_id(3)] == "00000004"
    folder = copy("rsna")
    (folder / rsna.MAPPING).unlink()
    assert "patient_id" not in read(rsna, folder).table


def test_rsna_order_of_rows_changes_nothing(copy, raw):
    folder = copy("rsna")
    path = folder / "stage_2_train_labels.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    before, after = read(rsna, raw["rsna"]), read(rsna, folder)
    assert before.table["split"].tolist() == after.table["split"].tolist()
    assert before.ids == after.ids


# --- SIIM ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "blanks"), [("dicom", ""), ("png", " "), ("numbered", "")])
def test_siim_layouts_and_spellings_give_the_same_table(raw, tmp_path, layout, blanks):
    folder = trees.make_siim(tmp_path / "siim", layout=layout, blanks=blanks)
    source = read(siim, folder)
    assert files_exist(source, folder)
    assert not source.table["file"].str.contains("masks").any()
    reference = rows(read(siim, raw["siim"])).drop(columns="file")
    pd.testing.assert_frame_equal(rows(source).drop(columns="file"), reference)
    assert (reference["label_Pneumothorax"] == "1").sum() == 30


def test_siim_parts_hold_images_not_rows(raw):
    source = read(siim, raw["siim"])
    table = rows(source)
    assert len(table) == 60
    assert (table["split"] == "test").sum() == int(0.3 * 60)
    assert ((table["split_segmentation"] != "") == (table["label_Pneumothorax"] == "1")).all()
    assert table["split_segmentation"].value_counts().to_dict() == {"": 30, "train": 21, "val": 4, "test": 5}


def test_siim_test_part_is_pandas_sample_of_first_rows_in_table_order(raw):
    table = pd.read_csv(raw["siim"] / "stage_2_train.csv").drop_duplicates("ImageId")
    expected = table.sample(n=int(0.3 * len(table)), random_state=42)["ImageId"].tolist()
    assert read(siim, raw["siim"]).ids["test"] == expected


def test_siim_mask_is_the_union_of_all_rows(raw):
    table = read(siim, raw["siim"]).table
    row = table[table["image_id"] == trees.siim_id(6)].iloc[0]
    expected = trees.siim_mask(6, 0) | trees.siim_mask(6, 1)
    assert (siim.mask(row, (1024, 1024)) == expected).all()
    assert (siim.mask(row, (64, 64)) == expected[8::16, 8::16]).all()
    empty = table[table["image_id"] == trees.siim_id(1)].iloc[0]
    assert not siim.mask(empty, (64, 64)).any()


def test_siim_runs_count_from_the_end_of_the_run_before():
    mask = siim.decode_runs("1 2 3 1", (4, 3))
    assert mask[:, 0].tolist() == [False, True, True, False]
    assert mask[:, 1].tolist() == [False, False, True, False]
    assert not mask[:, 2].any()


@pytest.mark.parametrize("code", ["1", "a b", "-3 2", "0 21"])
def test_siim_damaged_runs_are_refused(code):
    with pytest.raises(DataError, match="not a run-length code"):
        siim.decode_runs(code, (4, 5))


# --- NIH ----------------------------------------------------------------------------------------------------


def test_nih_slice_is_the_first_fifth_of_the_test_list_in_table_order(raw):
    source = read(nih, raw["nih"])
    listed = set((raw["nih"] / "test_list.txt").read_text().split())
    in_order = [trees.nih_name(i) for i in range(150) if trees.nih_name(i) in listed]
    assert [f"{item}.png" for item in source.ids["val"]] == in_order[: trees.NIH_SLICE]
    assert files_exist(source, raw["nih"])
    assert set(rows(source)["split"]) == {"val"}


def test_nih_labels_are_the_members_of_the_joined_text(raw):
    table = rows(read(nih, raw["nih"]))
    text = pd.read_csv(raw["nih"] / "Data_Entry_2017_v2020.csv").set_index("Image Index")["Finding Labels"]
    for name in trees.NIH:
        expected = [str(int(name in text[f"{item}.png"].split("|"))) for item in table.index]
        assert table[f"label_{name}"].tolist() == expected
    assert (table[[f"label_{name}" for name in trees.NIH]] == "1").sum(axis=1).max() == 2


def test_nih_one_folder_or_twelve(raw, tmp_path):
    flat = read(nih, trees.make_nih(tmp_path / "nih", flat=True, stray=False))
    assert flat.ids == read(nih, raw["nih"]).ids
    assert flat.table["file"].str.startswith("images/").all()


def test_nih_without_the_images_of_rsna(raw):
    mapping = raw["rsna"] / rsna.MAPPING
    taken = {item["img_id"].removesuffix(".png") for item in json.loads(mapping.read_text())}
    source = read(nih, raw["nih"], rsna_mapping=str(mapping))
    everything = read(nih, raw["nih"]).ids["val"]
    assert source.ids["val_without_rsna"] == [item for item in everything if item not in taken]
    assert 0 < len(source.ids["val_without_rsna"]) < len(everything)


def test_nih_unknown_finding_is_named(copy):
    folder = copy("nih")
    path = folder / "Data_Entry_2017_v2020.csv"
    path.write_text(path.read_text().replace("Infiltration", "Infiltrate"))
    with pytest.raises(DataError, match="unknown finding 'Infiltrate'. Did you mean 'Infiltration'"):
        read(nih, folder)


# --- CheXpert 5x200 -----------------------------------------------------------------------------------------


def test_chexpert_list_is_read_by_name_and_found_below_another_prefix(raw, copy):
    source = read(chexpert_5x200, raw["chexpert"])
    table = rows(source)
    assert files_exist(source, raw["chexpert"])
    assert table["file"].str.startswith("CheXpert-v1.0-small/train/").all()
    assert {name: int((table[f"label_{name}"] == "1").sum()) for name in trees.FIVE} == dict.fromkeys(
        trees.FIVE, 4
    )
    folder = copy("chexpert")
    shuffled = pd.read_csv(folder / "chexpert_5x200.csv", dtype=str).fillna("")
    shuffled[shuffled.columns[::-1]].drop(columns="Report Impression").to_csv(folder / "chexpert_5x200.csv")
    pd.testing.assert_frame_equal(rows(read(chexpert_5x200, folder)), table)


def test_chexpert_patients_and_studies(raw):
    table = rows(read(chexpert_5x200, raw["chexpert"]))
    first = table.loc["train/patient00001/study2/view1_frontal"]
    assert (first["patient_id"], first["study_id"], first["view"]) == (
        "patient00001",
        "patient00001/study2",
        "PA",
    )


def test_chexpert_batch_folders(copy):
    folder = copy("chexpert")
    shutil.move(folder / "CheXpert-v1.0-small" / "train", folder / "CheXpert-v1.0 batch 2 (train 1)")
    source = read(chexpert_5x200, folder)
    assert files_exist(source, folder)


def test_chexpert_two_findings_in_a_row_are_refused(copy):
    folder = copy("chexpert")
    path = folder / "chexpert_5x200.csv"
    table = pd.read_csv(path, dtype=str)
    table.loc[3, "Edema"] = table.loc[3, "Atelectasis"] = "1.0"
    table.to_csv(path, index=False)
    with pytest.raises(DataError, match="has not exactly one of Atelectasis"):
        read(chexpert_5x200, folder)


def test_chexpert_is_never_rebuilt_silently(copy):
    folder = copy("chexpert")
    (folder / "chexpert_5x200.csv").unlink()
    with pytest.raises(
        DataError, match="chexpert_5x200.csv is missing.*cannot be rebuilt exactly; rebuild=true"
    ):
        read(chexpert_5x200, folder)
    source = read(chexpert_5x200, folder, rebuild=True)
    assert list(source.ids) == ["test_rebuilt"]
    assert published("chexpert_5x200")["test_rebuilt"]["sha256"] not in (None, "")
    assert any("not the published list" in step for step, _ in source.steps)
    table = rows(source)
    assert len(table) == 20  # neither the lateral view nor the uncertain row
    assert not table.index.str.contains("patient09999").any()
    assert not table.index.str.contains("lateral").any()


# --- published splits ---------------------------------------------------------------------------------------


def test_published_counts():
    facts = published("rsna")
    assert facts["all"]["sha256"] == "6966677a13e865c1a2c39331ba5053080540fbbe267905d539760c97c7005ea7"
    assert facts["test"]["sha256"] == "6f3a241d8a40b0751e4ced2f5c923b59ccd4964c2e3d122a5a4f4282606130ba"
    counts = {
        name: {part: entry["count"] for part, entry in published(name).items()} for name in ("rsna", "siim")
    }
    assert counts["rsna"] == {
        "all": 26684, "test": 4003, "detection_train": 4208, "detection_val": 902, "detection_test": 902,
    }  # fmt: skip
    assert counts["siim"] == {
        "all": 12047, "test": 3614, "segmentation_train": 1868, "segmentation_val": 400, "segmentation_test": 401,
    }  # fmt: skip
    assert published("nih")["val"]["count"] == 5119


def test_draws_have_the_published_sizes_and_are_those_of_the_libraries():
    from sklearn.model_selection import train_test_split

    from benchmark.data.datasets._sources import hold_out, sample_rows

    ids = [hashlib.md5(str(i).encode()).hexdigest() for i in range(26684)]
    for share, seed, count in (
        (0.15, 0, 26684),
        (0.3, 0, 6012),
        (0.5, 0, 1804),
        (0.3, 0, 2669),
        (0.5, 0, 801),
        (0.15, 3, 20),
    ):
        expected = train_test_split(ids[:count], test_size=share, random_state=seed)
        assert list(hold_out(ids[:count], share, seed)) == list(expected)
    sizes = [len(part) for part in hold_out(ids, 0.15)] + [len(part) for part in hold_out(ids[:6012], 0.3)]
    assert sizes == [22681, 4003, 4208, 1804]
    frame = pd.DataFrame({"row": range(12047)})
    assert sample_rows(12047, 3614, seed=42) == frame.sample(n=3614, random_state=42)["row"].tolist()
