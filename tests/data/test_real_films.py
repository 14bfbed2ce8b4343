"""Real films end to end, through the command line: one's own CSV file as corpus, test sets and detection set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmark.cli import main
from tests.data import real

SUITE = """
name: films
backbone: tiny
templates: ["a chest X-ray image of {{}}."]
corpus: {{{own}, part: train, text_column: text}}
validation: {{task: zeroshot, metric: auroc, {own}, part: val, kind: multilabel, classes: {classes}}}
tasks:
  zeroshot:
    bootstrap: 20
    datasets:
      films: {{{own}, part: test, kind: multilabel, classes: {classes}}}
  detection:
    {{epochs: 1, width: 16, panels: 0, untrained: false, bootstrap: 20, datasets: {{
      lungs: {{{own}, boxes_column: lungs, train: {{part: train}}, val: {{part: val}}, test: {{part: test}}}}
    }}}}
recipe: {{epochs: 1, batch_size: 16}}
"""


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """A function that runs a CSV file of films and returns the results of its tasks, and what was said."""
    monkeypatch.chdir(tmp_path)

    def run(
        films: pd.DataFrame, images: Path, classes: list[str], *tasks: str
    ) -> tuple[list[dict[str, Any]], str]:
        films.to_csv("films.csv", index=False)
        own = f"dataset: csv, file: films.csv, images: {images}, split_column: part, crop: squash"
        Path("suite.yaml").write_text(SUITE.format(own=own, classes=json.dumps(classes)))
        words = "--suite suite.yaml --methods taskres --data-root data --max-steps 2 --jobs 1 --tasks"
        assert main([*words.split(), ",".join(tasks)]) == 0
        said = capsys.readouterr()
        cell = tmp_path / "results/runs/films/tiny/taskres/seed-0"
        found = [json.loads((cell / f"{task}.json").read_text())["datasets"] for task in tasks]
        return found, " ".join((said.out + said.err).split())

    return run


@pytest.mark.slow
def test_films_with_notes_are_corpus_test_set_and_detection_set(results: Any) -> None:
    """248 films of 148 patients with a note and two lung boxes each; parts by patient."""
    folder = real.folder("covid_films")
    films = pd.read_csv(folder / "films.csv", dtype=str, keep_default_na=False)
    films = films.rename(columns={"image": "path", "notes": "text", "lung_boxes_xyxy": "lungs"})
    fifth = pd.Series(pd.factorize(films["patient_id"])[0] % 5)
    films["part"] = fifth.map({0: "test", 1: "val"}).fillna("train")
    names = ["COVID-19", "ARDS", "Pneumocystis"]
    for name in names:
        films[f"label_{name}"] = films["finding"].str.contains(name).astype(int)
    (zeroshot, detection), _ = results(films, folder, names, "zeroshot", "detection")
    tested = films[films["part"] == "test"]
    assert zeroshot["films"]["n"] == detection["lungs"]["n"] == len(tested) == 39
    assert 0 < zeroshot["films"]["metrics"]["auroc"]["value"] < 1
    info = detection["lungs"]["info"]
    assert info["images"] == {"train": 156, "val": 53, "test": 39}
    assert set(info["shared_patients"].values()) == {0}
    # most lungs lie in the same two places: one box for all films finds some of them
    assert detection["lungs"]["metrics"]["map_trivial"]["value"] > 0.05


@pytest.mark.slow
def test_labels_are_joined_by_name_and_patients_of_two_parts_are_told(results: Any) -> None:
    """1,000 films of NIH, split by film: 63 of the 200 test films are of patients whose other films train."""
    folder = real.folder("nih1000") / "NIH1000"
    rows = pd.read_csv(real.tables() / "Data_Entry_2017_v2020.csv.gz", index_col="Image Index")
    paths = sorted(folder.rglob("*.png"))
    rows = rows.loc[[path.name for path in paths]].reset_index(drop=True)
    films = rows["Finding Labels"].str.get_dummies().drop(columns="No Finding").add_prefix("label_")
    abnormal = films.any(axis=1).tolist()
    # the folder calls one film normal that the table calls a pneumonia
    other = [
        path.name for path, shown in zip(paths, abnormal, strict=True) if ("abnormal" in str(path)) != shown
    ]
    assert other == ["00000193_019.png"]
    films["path"] = [str(path.relative_to(folder)) for path in paths]
    films["part"] = [path.parts[-3].replace("valid", "val") for path in paths]
    films["patient_id"] = [path.name[:8] for path in paths]
    films["text"] = rows["View Position"] + " film: " + rows["Finding Labels"]
    names = ["No Finding", "Effusion", "Atelectasis", "Infiltration"]
    (zeroshot,), said = results(films, folder, names, "zeroshot")
    result = zeroshot["films"]
    assert (result["n"], result["info"]["classes"]) == (200, names)
    told = "test set 'films' (zeroshot): 63 of 200 images are of 8 patients of the corpus 'csv' ('test/"
    assert told in said
    shared = {item["with"]: item for item in result["info"]["overlaps"]}["the corpus 'csv'"]
    assert (shared["images_of_patients"], shared["patients"], shared["images"]) == (63, 8, 0)
