"""`new-suite`: what columns are taken for, the suite that is written, and a run of it."""

from __future__ import annotations

import csv

import numpy as np
import PIL.Image
import pytest
import yaml

from benchmark.cli import main
from benchmark.config.load import load_config

HEAD = ["image", "report", "part", "patient", "finding", "Edema", "Pleural_Effusion", "comment"]


def _films(folder, count=24, separator=","):
    generator = np.random.default_rng(0)
    rows = []
    for at in range(count):
        name = f"{at}.png"
        PIL.Image.fromarray(generator.integers(0, 255, (64, 64), dtype=np.uint8)).save(folder / name)
        finding = ("normal", "edema", "effusion")[(at // 4) % 3]
        part = ("train", "train", "valid", "test")[at % 4]
        blank = "" if at % 5 == 0 else str(int(finding == "effusion"))
        rows.append(
            [name, f"Film {at} shows {finding}.", part, f"p{at}", finding, int(finding == "edema"), blank, ""]
        )
    return rows


def _write(folder, rows, head=HEAD, separator=","):
    with (folder / "films.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows([head, *rows])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_a_suite_is_written_said_and_runs(folder, capsys):
    _write(folder, _films(folder), separator=";")
    assert main(["new-suite", "films.csv"]) == 0
    said = capsys.readouterr()
    for words in (
        "report",
        "texts",
        "patients",
        "a label",
        "6 of 19 are 1",
        "not used",
        "validate --suite films.yaml",
    ):
        assert words in said.out
    assert said.err == ""
    suite = yaml.safe_load((folder / "films.yaml").read_text())
    assert suite["corpus"]["part"] == "train"
    assert suite["corpus"]["label_columns"] == ["Edema", "Pleural_Effusion"]
    assert (suite["validation"]["part"], suite["validation"]["kind"]) == ("valid", "multiclass")
    classes, labels = suite["tasks"]["zeroshot"]["datasets"].values()
    assert classes["classes"] == ["normal", "edema", "effusion"]
    assert labels["prompts"] == {"Pleural_Effusion": "Pleural Effusion"}
    assert "# " in (folder / "films.yaml").read_text()
    config = load_config({"suite": "films.yaml", "methods": "zero_shot,clip_lora"})
    assert config.recipes["clip_lora"].batch_size == 6
    words = ["--suite", "films.yaml", "--methods", "zero_shot", "--jobs", "1", "--device", "cpu"]
    assert main([*words, "tasks.zeroshot.bootstrap=5"]) == 0
    assert main(["new-suite", "films.csv"]) == 2
    assert "films.yaml' is there already" in capsys.readouterr().err


def test_without_parts_only_what_trains_nothing_can_run(folder, capsys):
    _write(folder, [[row[0], row[4]] for row in _films(folder)], head=["path", "class"])
    assert main(["new-suite", "films.csv", "--to", "other.yaml"]) == 0
    said = capsys.readouterr()
    assert "only methods that train nothing can run" in said.err
    assert "--methods zero_shot\n" in said.out
    suite = yaml.safe_load((folder / "other.yaml").read_text())
    assert "corpus" not in suite
    assert "validation" not in suite
    assert load_config({"suite": "other.yaml", "methods": "zero_shot"}).tasks == ("zeroshot",)


@pytest.mark.parametrize(
    ("head", "cells", "says"),
    [
        (["a", "b"], ["x", "1"], "no column holds image paths"),
        (["path", "note"], ["0.png", ""], "nothing to score"),
        (["path", "class"], ["gone.png", "x"], "row 2, column 'path': no image 'gone.png'"),
    ],
)
def test_a_file_of_which_no_suite_can_be_made_is_one_line(folder, capsys, head, cells, says):
    rows = [cells, *([[row[0], row[4]] for row in _films(folder)][1:] if head[1] == "class" else [])]
    _write(folder, rows, head=head)
    assert main(["new-suite", "films.csv"]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("error:") == 1


def test_validate_shows_what_concerns_an_own_suite_in_order(folder, capsys):
    _write(folder, _films(folder))
    assert main(["new-suite", "films.csv"]) == 0
    capsys.readouterr()
    assert main(["validate", "--suite", "films.yaml", "--methods", "zero_shot,taskres"]) == 0
    said = capsys.readouterr().out
    assert "gloria" not in said
    assert said.index("ready") < said.index("cost")
    (folder / "3.png").unlink()
    assert main(["validate", "--suite", "films.yaml", "--methods", "zero_shot"]) == 2
    said = capsys.readouterr().out
    assert said.index("wrong") < said.index("ready") < said.index("cost")
