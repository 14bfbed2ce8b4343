"""What goes wrong with downloads: one line that says which file is missing, what is there, and where to get it."""

from __future__ import annotations

import shutil

import pytest

from benchmark.data.datasets import chexpert_5x200, lc25000, mhist, mimic_cxr, nih, openi, pmc_oa, rsna, siim
from benchmark.errors import ConfigError, DataError
from benchmark.registry import DATASETS
from tests.data import trees
from tests.data.opened import read

READERS = (chexpert_5x200, lc25000, mhist, mimic_cxr, nih, openi, pmc_oa, rsna, siim)
HTML = "<!DOCTYPE html>\n<html><body>Log in</body></html>\n"


def refused(reader, folder, **options):
    """Return the message of the reader's error: one line, with the dataset's address where files are missing."""
    with pytest.raises(DataError) as caught:
        read(reader, folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__.rpartition(".")[2])
def test_an_empty_folder_and_none_at_all(reader, tmp_path):
    name = reader.__name__.rpartition(".")[2]
    dataset = DATASETS.get(name)
    assert dataset.name == name
    message = refused(reader, tmp_path)
    assert message.startswith(f"{dataset.title}: ")
    assert f"{tmp_path} holds nothing" in message
    assert dataset.access.url in message
    assert "is not a folder" in refused(reader, tmp_path / "none")


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__.rpartition(".")[2])
def test_only_the_index_page_of_a_server(reader, tmp_path):
    (tmp_path / "index.html").write_text(HTML)
    assert "holds only index.html (wget saved the page" in refused(reader, tmp_path)


def test_siim_page_of_kaggle_has_no_labelled_images(tmp_path):
    folder = trees.make_siim(tmp_path / "siim", layout="kaggle")
    message = refused(siim, folder)
    assert "none of 60 images are there" in message
    assert "stage_2_images/ID_*.dcm are the unlabelled images of stage 2" in message


def test_siim_numbered_copies_need_their_name_tables(tmp_path):
    folder = trees.make_siim(tmp_path / "siim", layout="numbered")
    (folder / "stage_1_test_images.csv").unlink()
    message = refused(siim, folder)
    assert "only 52 of 60 images are there" in message
    assert "need stage_1_train_images.csv and stage_1_test_images.csv" in message


def test_siim_one_tree_of_two(tmp_path):
    folder = trees.make_siim(tmp_path / "siim", layout="png")
    test_part = sorted((folder / "png_images").iterdir())[:8]
    (folder / "dicom-images-train").mkdir()
    for path in test_part:
        path.unlink()
    assert "dicom-images-test/ is missing" in refused(siim, folder)


def test_siim_table_of_stage_1_is_read_and_left_to_the_check_of_the_list(tmp_path):
    folder = trees.make_siim(tmp_path / "siim", layout="png")
    (folder / "stage_2_train.csv").rename(folder / "train-rle.csv")
    assert len(read(siim, folder).table) == 60


def test_rsna_stage_1_is_named(tmp_path):
    trees.write_csv(tmp_path / "stage_1_train_labels.csv", ("patientId",), [])
    assert "stage_1_train_labels.csv is the first stage" in refused(rsna, tmp_path)


def test_mimic_jpg_has_no_reports(tmp_path):
    folder = trees.make_mimic(tmp_path / "mimic", reports="none", studies=8)
    message = refused(mimic_cxr, folder)
    assert "no report is there (expected files/p10/p10000000/s50000000.txt)" in message
    assert "put mimic-cxr-reports.zip of MIMIC-CXR beside its files/" in message


def test_mimic_dicom_release_is_not_the_jpg_release(tmp_path):
    folder = trees.make_mimic(tmp_path / "mimic", studies=8)
    for path in folder.rglob("*.jpg"):
        path.rename(path.with_suffix(".dcm"))
    assert "this reader takes the JPG release" in refused(mimic_cxr, folder)


def test_mimic_report_that_is_a_web_page(tmp_path):
    folder = trees.make_mimic(tmp_path / "mimic", studies=8)
    (folder / "files/p10/p10000000/s50000000.txt").write_text(HTML)
    assert "s50000000.txt is a web page, not the file" in refused(mimic_cxr, folder)


def test_mimic_table_that_is_a_web_page_or_cut_off(tmp_path):
    folder = trees.make_mimic(tmp_path / "mimic", studies=8)
    path = folder / "mimic-cxr-2.0.0-metadata.csv.gz"
    whole = path.read_bytes()
    path.write_text(HTML)
    assert f"{path} is a web page" in refused(mimic_cxr, folder)
    path.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read as CSV" in refused(mimic_cxr, folder)
    path.write_bytes(whole[:40] + bytes(20) + whole[60:])
    assert "cannot be read as CSV" in refused(mimic_cxr, folder)


def test_mimic_archive_of_reports_that_is_damaged(tmp_path):
    folder = trees.make_mimic(tmp_path / "mimic", reports="zip", studies=8)
    path = folder / "mimic-cxr-reports.zip"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(whole[80:90], bytes(10), 1))
    assert "mimic-cxr-reports.zip: damaged zip file" in refused(mimic_cxr, folder)
    path.write_bytes(whole[: len(whole) // 2])
    assert "mimic-cxr-reports.zip: damaged zip file" in refused(mimic_cxr, folder)


def test_options_name_what_they_take(tmp_path):
    for reader, option in ((mimic_cxr, "labels"), (nih, "images"), (openi, "views"), (pmc_oa, "keywords")):
        dataset = DATASETS.get(reader.__name__.rpartition(".")[2])
        with pytest.raises(ConfigError, match=f"{option}: expected one of .*, got 'nonsense'"):
            dataset.read_table(tmp_path, {option: "nonsense"})
    assert "'/nowhere' does not exist" in refused(
        mimic_cxr, trees.make_mimic(tmp_path / "mimic", studies=8), reports="/nowhere"
    )


def test_pmc_oa_pointer_cut_line_and_missing_images(tmp_path):
    folder = trees.make_pmc_oa(tmp_path / "pmc")
    path = folder / "pmc_oa.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-20])
    assert "line 81 is not a record" in refused(pmc_oa, folder)
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "is a Git LFS pointer" in refused(pmc_oa, folder)
    path.write_text(whole)
    shutil.rmtree(folder / "images")
    assert "expected images/PMC100_Fig0_0.jpg" in refused(pmc_oa, folder)


def test_a_table_of_something_else_is_named_with_its_columns(tmp_path):
    trees.make_mhist(tmp_path)
    (tmp_path / "annotations.csv").write_text("a,b\n1,2\n")
    message = refused(mhist, tmp_path)
    assert "column Image Name, Majority Vote Label, Partition is missing; it has a, b" in message


def test_single_missing_image_is_left_to_the_engine_which_may_skip_it(tmp_path):
    folder = trees.make_mhist(tmp_path)
    (folder / "images" / "MHIST_aca.png").unlink()
    assert read(mhist, folder).table["file"].tolist()[2] == "images/MHIST_aca.png"
