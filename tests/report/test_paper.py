from __future__ import annotations

import pandas as pd
import pytest

from benchmark.errors import DataError
from benchmark.report.paper import KEY, load_paper

# Images of each test set as the printed accuracies imply them (RSNA: 15 % of 26,684, SIIM: 30 % of 12,047).
NUM_IMAGES = {
    "CheXpert5x200": 1000,
    "RSNA": 4003,
    "SIIM": 3614,
    "MHIST": 3152,
    "LC25000-Lung": 15000,
    "LC25000-Colon": 10000,
}


def ace_lora() -> pd.DataFrame:
    """The numbers of the ACE-LoRA paper; those of MedCT-VLM stand in a table of their own."""
    frame = load_paper().frame
    return frame[frame["table"] != "medct_vlm"]


def test_all_250_rows_are_there_once_with_numbers():
    frame = ace_lora()
    assert len(frame) == 250
    assert not frame.duplicated(KEY).any()
    assert frame["value"].dtype == float


def test_what_medct_vlm_prints():
    paper = load_paper()
    rows = [("CT-CLIP in MedCT-VLM", 61.3, 67.2, 32.1), ("MedCT-VLM", 68.9, 73.6, 36.9)]
    for row, *values in rows:
        assert [paper.value("medct_vlm", row, "CT-RATE", head) for head in ("AUROC", "ACC", "F1")] == values
    assert paper.value("medct_vlm", "CT-CLIP in its own paper", "CT-RATE", "AUROC") == 73.1


def test_every_accuracy_is_a_share_of_whole_images():
    frame = ace_lora()
    accuracies = frame[frame["metric"] == "ACC"]
    assert set(accuracies["dataset"]) == set(NUM_IMAGES)
    for row in accuracies.itertuples():
        images = NUM_IMAGES[row.dataset]
        nearest = round(row.value / 100 * images)
        shares = [round(100 * count / images, 2) for count in (nearest - 1, nearest, nearest + 1)]
        assert row.value in shares, row


def test_rows_that_repeat_across_tables_agree():
    paper = load_paper()
    for dataset in ("CheXpert5x200", "RSNA", "SIIM"):
        lora = paper.value("1", "CLIP-LoRA", dataset, "ACC")
        assert lora == paper.value("5", "LoRA=1;ACE-HGNN=0;label=1", dataset, "ACC")
        assert lora == paper.value("A.3", "image_encoder=0;text_encoder=0", dataset, "ACC")
        assert paper.value("1", "ACE-LoRA", dataset, "AUROC") == paper.value(
            "2", "ACE-LoRA", dataset, "AUROC"
        )


def test_access_by_the_papers_heads():
    paper = load_paper()
    assert paper.value("1", "ACE-LoRA", "RSNA", "AUROC") == 87.19
    assert paper.value("4", "ACE-LoRA", "SIIM", "Dice") == 46.34
    assert paper.value("4", "ACE-LoRA", "RSNA", "mAP") == 21.29
    assert paper.value("1", "no such method", "RSNA", "ACC") is None


def test_methods_come_in_the_papers_order():
    methods = load_paper().methods("1")
    assert methods[0] == "BiomedCLIP"
    assert methods[-1] == "ACE-LoRA"
    assert len(methods) == 11


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "expected columns table, row_method"),
        (
            "table,row_method,group,dataset,metric,value\n1,x,g,RSNA,ACC,many\n",
            r":2: expected a number, got 'many'",
        ),
        ("table,row_method,group,dataset,metric,value\n" + "1,x,g,RSNA,ACC,1\n" * 2, ":3: .*there already"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "tables.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_paper(path)


def test_a_missing_file_is_one_clear_error(tmp_path):
    with pytest.raises(DataError, match="cannot read the paper's numbers"):
        load_paper(tmp_path / "none.csv")
