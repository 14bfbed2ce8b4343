"""Readers of image-text corpora and of the histopathology sets, on tiny folders in the layout of the downloads."""

from __future__ import annotations

import csv
import gzip
import shutil

import numpy as np
import pandas as pd
import pytest

from benchmark.data.datasets import lc25000, mhist, mimic_cxr, openi, pmc_oa
from benchmark.errors import DataError
from tests.data import trees
from tests.data.opened import read

LABELS = [f"label_{name}" for name in mimic_cxr.LABELS]


@pytest.fixture(scope="module")
def mimic(tmp_path_factory):
    return trees.make_mimic(tmp_path_factory.mktemp("raw") / "mimic")


@pytest.fixture(scope="module")
def openi_xml(tmp_path_factory):
    return trees.make_openi(tmp_path_factory.mktemp("raw") / "openi")


def files_exist(source, folder):
    return all((folder / name).is_file() for name in source.table["file"])


def steps(source):
    """Return the counts of the steps; dropped ones must explain the difference between read and kept."""
    counts = dict(source.steps)
    first = next(iter(counts.values()))
    assert first + sum(count for count in counts.values() if count < 0) == counts["kept"] == len(source.table)
    assert source.table["image_id"].is_unique
    return counts


# --- MIMIC-CXR ----------------------------------------------------------------------------------------------


def test_mimic_keeps_frontal_images_with_a_report_and_counts_the_rest(mimic):
    source = read(mimic_cxr, mimic)
    counts = steps(source)
    assert files_exist(source, mimic)
    assert counts["images in the metadata table"] == 60
    assert counts["view is blank"] == -6
    assert counts["view is not PA or AP"] == -18
    assert counts["no report file"] == -1
    assert counts["no section with 3 words"] == -1
    assert set(source.table["view"]) == {"PA", "AP"}
    assert set(source.table["split"]) == {"train", "val", "test"}
    assert not set(source.table["study_id"]) & {"50000003", "50000005"}


def test_mimic_text_and_labels_are_those_of_the_study(mimic):
    table = read(mimic_cxr, mimic).table
    with gzip.open(mimic / "mimic-cxr-2.0.0-chexpert.csv.gz", "rt") as file:
        labels = {row["study_id"]: row for row in csv.DictReader(file)}
    for _, row in table.iterrows():
        assert f"Study {row['study_id']} shows" in row["text"]
        assert (
            row["file"]
            == f"files/p{row['patient_id'][:2]}/p{row['patient_id']}/s{row['study_id']}/{row['image_id']}.jpg"
        )
        given = labels.get(row["study_id"], {})
        expected = ["" if not given.get(name) else str(int(float(given[name]))) for name in mimic_cxr.LABELS]
        assert row[LABELS].tolist() == expected
    assert set(table[LABELS].to_numpy().ravel()) == {"", "0", "1", "-1"}


def test_mimic_study_without_labels_differs_from_one_whose_labels_are_blank(mimic):
    table = read(mimic_cxr, mimic).table.set_index("study_id")
    assert table.loc["50000007", "labelled"] == ""
    assert table.loc["50000009", "labelled"] == "1"
    assert set(table.loc["50000009", LABELS]) == {""}


@pytest.mark.parametrize("shuffled", ["metadata", "chexpert", "split"])
def test_mimic_order_of_any_table_changes_no_row(mimic, tmp_path, shuffled):
    folder = shutil.copytree(mimic, tmp_path / "mimic")
    path = folder / f"mimic-cxr-2.0.0-{shuffled}.csv.gz"
    frame = pd.read_csv(path, dtype=str).sample(frac=1, random_state=3)
    frame[frame.columns[::-1]].to_csv(path, index=False)
    before, after = read(mimic_cxr, mimic).table, read(mimic_cxr, folder).table
    key = "image_id"
    pd.testing.assert_frame_equal(
        before.sort_values(key, ignore_index=True), after.sort_values(key, ignore_index=True), check_like=True
    )


def test_mimic_without_one_study_in_the_label_table_only_that_study_changes(mimic, tmp_path):
    folder = shutil.copytree(mimic, tmp_path / "mimic")
    path = folder / "mimic-cxr-2.0.0-chexpert.csv.gz"
    frame = pd.read_csv(path, dtype=str)
    frame[frame["study_id"] != "50000012"].to_csv(path, index=False)
    before = read(mimic_cxr, mimic).table.set_index("study_id")
    after = read(mimic_cxr, folder).table.set_index("study_id")
    changed = (before != after).any(axis=1)
    assert changed[changed].index.tolist() == ["50000012"]
    assert set(after.loc["50000012", LABELS]) == {""}


@pytest.mark.parametrize("form", ["own", "zip"])
def test_mimic_reports_wherever_they_are(mimic, tmp_path, form):
    folder = trees.make_mimic(tmp_path / "mimic", reports=form, packed=False)
    pd.testing.assert_frame_equal(read(mimic_cxr, folder).table, read(mimic_cxr, mimic).table)


def test_mimic_reports_outside_the_folder_and_sectioned_ones(mimic, tmp_path):
    folder = trees.make_mimic(tmp_path / "mimic", reports="sectioned", studies=12)
    table = read(mimic_cxr, folder).table
    assert table["text"].tolist() == [f"s{study} is clear" for study in table["study_id"]]
    outside = shutil.move(folder / "mimic_cxr_sectioned.csv", tmp_path / "sections.csv")
    assert read(mimic_cxr, folder, reports=str(outside)).table["text"].equals(table["text"])
    trees.make_mimic(tmp_path / "other", reports="own", studies=12)
    given = read(mimic_cxr, folder, reports=str(tmp_path / "other" / "mimic-cxr-reports"))
    assert given.table["text"].str.startswith("Study 5").all()


def test_mimic_side_by_side_as_physionet_names_the_folders(mimic, tmp_path):
    shutil.copytree(mimic, tmp_path / "mimic-cxr-jpg" / "2.1.0")
    source = read(mimic_cxr, tmp_path)
    assert files_exist(source, tmp_path)
    assert source.table["file"].str.startswith("mimic-cxr-jpg/2.1.0/files/").all()


def test_mimic_contradicting_tables_are_refused(mimic, tmp_path):
    folder = shutil.copytree(mimic, tmp_path / "mimic")
    split = folder / "mimic-cxr-2.0.0-split.csv.gz"
    frame = pd.read_csv(split, dtype=str)
    frame.loc[0, "study_id"] = "59999999"
    frame.to_csv(split, index=False)
    with pytest.raises(DataError, match="1 images have no split or another study"):
        read(mimic_cxr, folder)
    shutil.copy(mimic / split.name, split)
    labels = folder / "mimic-cxr-2.0.0-chexpert.csv.gz"
    frame = pd.read_csv(labels, dtype=str)
    pd.concat([frame, frame.iloc[:1].assign(Edema="1.0", Pneumothorax="-1.0")]).to_csv(labels, index=False)
    with pytest.raises(DataError, match="has two rows with different labels"):
        read(mimic_cxr, folder)
    pd.concat([frame, frame]).to_csv(labels, index=False)  # the same row twice says nothing wrong
    assert len(read(mimic_cxr, folder).table) == len(read(mimic_cxr, mimic).table)


# --- Open-i -------------------------------------------------------------------------------------------------


def test_openi_frontal_images_and_texts(openi_xml):
    source = read(openi, openi_xml)
    counts = steps(source)
    assert files_exist(source, openi_xml)
    assert (counts["images with a report"], counts["view is not frontal"]) == (80, -40)
    table = source.table.set_index("study_id")
    assert len(table) == 39
    assert table.loc["1", "text"] == "The lungs of case 1 are clear & wide. No acute disease in case 1."
    assert table.loc["3", "text"] == "No acute disease in case 3."
    assert table["file"].str.endswith("-4001.png").all()
    assert "split" not in table
    assert not [name for name in table if name.startswith("label")]


def test_openi_kaggle_form_says_the_same(openi_xml, tmp_path):
    folder = trees.make_openi(tmp_path / "openi", form="kaggle")
    source = read(openi, folder)
    assert files_exist(source, folder)
    columns = ["study_id", "text", "view"]
    reference = read(openi, openi_xml).table.sort_values("study_id", ignore_index=True)
    pd.testing.assert_frame_equal(
        source.table.sort_values("study_id", ignore_index=True)[columns], reference[columns]
    )


def test_openi_json_form_has_parts_but_no_views(tmp_path):
    folder = trees.make_openi(tmp_path / "openi", form="json")
    with pytest.raises(DataError, match="do not say which images are frontal.*views=all"):
        read(openi, folder)
    source = read(openi, folder, views="all")
    assert files_exist(source, folder)
    assert source.table["split"].value_counts().to_dict() == {"train": 68, "val": 4, "test": 4}


def test_openi_without_views_keeps_all_on_request(tmp_path):
    folder = trees.make_openi(tmp_path / "openi", views=False)
    with pytest.raises(DataError, match="do not say which images are frontal"):
        read(openi, folder)
    assert len(read(openi, folder, views="all").table) == 78


def test_openi_labels_of_the_user_are_joined_by_report(openi_xml, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("uid,Edema,Lung Opacity\n4,1.0,\n1,0,-1.0\n")
    table = read(openi, openi_xml, labels=str(path)).table.set_index("study_id")
    assert table.loc["4", ["labelled", "label_Edema", "label_Lung Opacity"]].tolist() == ["1", "1", ""]
    assert table.loc["1", ["labelled", "label_Edema", "label_Lung Opacity"]].tolist() == ["1", "0", "-1"]
    assert table.loc["5", ["labelled", "label_Edema", "label_Lung Opacity"]].tolist() == ["", "", ""]


# --- PMC-OA -------------------------------------------------------------------------------------------------


def test_pmc_oa_keeps_captions_with_a_keyword_and_counts_hits(tmp_path):
    folder = trees.make_pmc_oa(tmp_path / "pmc")
    source = read(pmc_oa, folder)
    counts = steps(source)
    assert files_exist(source, folder)
    assert counts["caption without a keyword"] == -40
    assert counts["the same image again"] == -1
    assert counts["caption with fewer than 3 words"] == -1
    assert (counts["captions with 'h&e'"], counts["captions with 'biopsy'"]) == (20, 21)
    assert source.table["text"][0] == "H&E stain of the colon, x40, figure 0."
    extended = read(pmc_oa, folder, keywords="extended")
    assert len(extended.table) == len(source.table) + 20
    assert list(extended.ids) == ["train_extended_sub", "val_extended_sub"]


def test_pmc_oa_parts_are_by_article_whatever_else_is_chosen(tmp_path):
    folder = trees.make_pmc_oa(tmp_path / "pmc")
    few, many = read(pmc_oa, folder).table, read(pmc_oa, folder, keywords="extended").table
    part = dict(zip(many["study_id"], many["split"], strict=True))
    assert set(part.values()) == {"train", "val"}
    assert many.groupby("study_id")["split"].nunique().max() == 1
    assert all(part[row.study_id] == row.split for row in few.itertuples())


def test_pmc_oa_a_tenth_of_the_articles_is_held_out():
    parts = [pmc_oa._part(f"PMC{i}") for i in range(20000)]
    assert np.isclose(parts.count("val") / len(parts), 0.1, atol=0.01)


def test_pmc_oa_other_files(tmp_path):
    beta = trees.make_pmc_oa(tmp_path / "beta", form="pmc_oa_beta")
    older = trees.make_pmc_oa(tmp_path / "older", form="older")
    with pytest.raises(DataError, match="pmc_oa.jsonl is missing"):
        read(pmc_oa, beta)
    reference = read(pmc_oa, beta, captions="whole").table
    pd.testing.assert_frame_equal(read(pmc_oa, older).table, reference)


def test_pmc_oa_organs_are_whole_words(tmp_path):
    table = read(pmc_oa, trees.make_pmc_oa(tmp_path / "pmc")).table
    assert (table["label_Colon"] == table["text"].str.contains("colon").map({True: "1", False: "0"})).all()
    assert (table["label_Lung"] == "1").any()
    assert pmc_oa._named(pmc_oa.ORGANS["Kidney"], ["adrenal gland", "Renal cortex"]) == ["0", "1"]


# --- LC25000 and MHIST --------------------------------------------------------------------------------------


def test_lc25000_classes_protocols_and_source_tiles(tmp_path):
    folder = trees.make_lc25000(tmp_path / "lc")
    source = read(lc25000, folder)
    assert files_exist(source, folder)
    table = source.table
    assert table["split_lung"].value_counts().to_dict() == {"test": 30, "": 20}
    assert (table["split_lung"] != table["split_colon"]).all()
    labels = table[[f"label_{text}" for _, text in lc25000.CLASSES.values()]]
    assert ((labels == "1").sum(axis=1) == 1).all()
    row = table.set_index("image_id").loc["colonca4"]
    assert (row["label_Colon adenocarcinoma"], row["patient_id"]) == ("1", "tile-302")
    (folder / lc25000.GROUPS).unlink()
    assert "patient_id" not in read(lc25000, folder).table


def test_lc25000_missing_class_folder_is_named(tmp_path):
    folder = trees.make_lc25000(tmp_path / "lc")
    shutil.rmtree(folder / "lung_colon_image_set" / "lung_image_sets" / "lung_scc")
    with pytest.raises(DataError, match="LC25000: class folder lung_image_sets/lung_scc is missing"):
        read(lc25000, folder)


def test_mhist_parts_and_labels(tmp_path):
    folder = trees.make_mhist(tmp_path / "mhist")
    source = read(mhist, folder)
    assert files_exist(source, folder)
    table = source.table
    assert table["split"].value_counts().to_dict() == {"train": 20, "test": 10}
    assert (table["label_Hyperplastic polyp"] != table["label_Sessile serrated adenoma"]).all()
    assert {name: len(ids) for name, ids in source.ids.items()} == {"all": 30, "test": 10}
