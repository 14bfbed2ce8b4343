"""The verb validate: what is here, what is missing and how to get it, what a run costs."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from benchmark.cli import main
from benchmark.data.prepare.prepare import prepare
from benchmark.errors import CellError
from benchmark.preprocess import Fitting
from benchmark.registry import DATASETS, load_plugins
from benchmark.run import preflight

FILMS = '''
"""A dataset of twelve noise images."""
import numpy as np
import pandas as pd
from benchmark.data.prepare.raw import Access, RawDataset, RawTable
from benchmark.registry import register_dataset


def read(raw):
    parts = ["train"] * 8 + ["test"] * 4
    table = pd.DataFrame({
        "image_id": [f"film {i}" for i in range(12)],
        "split": parts,
        "split_detection": ["", *parts[1:]],
        "text": [f"edema of case {i}" for i in range(12)],
        "label_Edema": [i % 2 for i in range(12)],
    })
    pixels = np.random.default_rng(0).integers(0, 255, (12, 70, 64), dtype=np.uint8)
    return RawTable(table, ids={"all": list(table["image_id"])}, pixels=pixels)


ACCESS = Access("credentialed", "https://films.example", "films.zip and the agreement", "none")
films = register_dataset("films")(RawDataset("films", "Films", ACCESS, "DIR/films", read, crop="squash"))
'''

SUITE = """
name: small
backbone: tiny
templates: ["a picture of {}."]
corpus: {dataset: films, part: train}
validation: {task: zeroshot, dataset: phantom, part: nih, n: 64, kind: multilabel, metric: auroc, classes: [Edema]}
tasks:
  zeroshot:
    datasets:
      films: {dataset: films, part: test, kind: binary, classes: [No Finding, Edema], positive: Edema}
      boxes: {dataset: films, part: test, protocol: detection, kind: binary, classes: [No Finding, Edema],
              positive: Edema}
recipe: {epochs: 3, batch_size: 4}
"""


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of a run over a dataset that has to be prepared."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "films.py").write_text(FILMS)
    (tmp_path / "small.yaml").write_text(SUITE)
    assert load_plugins([str(tmp_path / "films.py")]) == []
    return [
        "validate", "--suite", "small.yaml", "--plugins", "films.py", "--data-root", "data", "--device", "cpu",
        "--methods", "zero_shot,taskres", "--output-dir", "out",
    ]  # fmt: skip


@pytest.fixture
def prepared(words: list[str], tmp_path: Path) -> list[str]:
    """The same words, with the dataset prepared at the backbone's size."""
    (tmp_path / "raw").mkdir()
    prepare(DATASETS.get("films"), tmp_path / "raw", tmp_path / "data", fitting=Fitting((64, 64)), workers=1)
    return words


def verdict(capsys: pytest.CaptureFixture[str], words: list[str], status: int) -> dict[str, dict[str, Any]]:
    """Run the verb and return name -> item."""
    assert main([*words, "--json"]) == status
    content = json.loads(capsys.readouterr().out)
    assert content["ready"] is (status == 0)
    return {item["name"]: item for item in content["items"]}


def test_missing_data_come_with_source_access_and_command(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(words) == 2
    caught = capsys.readouterr()
    assert "2 things are missing" not in caught.out
    assert "3 things are missing" in caught.out
    lines = caught.err.splitlines()
    assert lines[0] == (
        "error: films train: not prepared in data. To do: https://films.example (credentialed access): films.zip and "
        "the agreement. Then: run_benchmark.py prepare films --raw DIR --data-root data --crop squash --size 64x64"
    )
    assert len(lines) == 1  # one command makes all three parts


def test_a_prepared_set_is_counted_from_its_report_alone(
    capsys: pytest.CaptureFixture[str], prepared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    original = builtins.open

    def watched(file: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(str(file))
        return original(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", watched)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("pixels were opened"))
    items = verdict(capsys, prepared, 0)
    assert items["films train"]["found"].startswith("8 images, squash-64x64, splits: as first prepared here")
    assert items["films test"]["found"].startswith("4 images")
    assert items["films detection test"]["state"] == "ok"
    assert items["phantom nih"]["state"] == "ok"
    assert items["tiny"]["found"] == "nothing to fetch"
    assert not any(name.endswith((".npy", "manifest.csv")) for name in opened)


def test_cost_is_steps_and_no_invented_time(capsys: pytest.CaptureFixture[str], prepared: list[str]) -> None:
    items = verdict(capsys, [*prepared, "--seeds", "0,1", "--epochs", "5"], 0)
    assert items["plan"]["found"] == "3 runs to do, 0 finished ones are reused"
    assert items["taskres"]["found"] == "2 x 10 steps (8 pairs, batch 4, at most 5 epochs)"
    assert items["zero_shot"]["found"] == "1 x no training"
    assert items["time"]["found"] == "not measured: no GPU here; --probe times steps on this CPU"
    limited = verdict(capsys, [*prepared, "--max-steps", "3", "--limit", "4"], 0)
    assert limited["taskres"]["found"].startswith("1 x 3 steps (4 pairs")


def test_a_probe_times_real_steps(capsys: pytest.CaptureFixture[str], prepared: list[str]) -> None:
    threads = torch.get_num_threads()
    try:
        items = verdict(capsys, [*prepared, "--probe", "4", "--jobs", "1"], 0)
    finally:
        torch.set_num_threads(threads)
    assert " ms a step: " in items["taskres"]["found"]
    assert items["time"]["found"].startswith("about ")
    assert items["time"]["found"].endswith("1 side by side; validation and tests on top (measured on cpu)")
    assert not Path("out").exists()


def test_a_method_that_cannot_be_probed_is_a_note(
    capsys: pytest.CaptureFixture[str], prepared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise CellError("out of memory with 1 pairs at a time")

    monkeypatch.setattr(preflight, "_timed", fail)
    items = verdict(capsys, [*prepared, "--probe", "2", "--jobs", "1"], 0)
    assert items["taskres"]["state"] == "note"
    assert items["taskres"]["found"].endswith("probe failed: out of memory with 1 pairs at a time")
    assert items["time"]["state"] == "note"


def test_a_corpus_smaller_than_a_batch(capsys: pytest.CaptureFixture[str], prepared: list[str]) -> None:
    items = verdict(capsys, [*prepared, "--batch-size", "64"], 2)
    assert items["taskres"]["found"] == "the corpus has 8 pairs, fewer than one batch of 64"
    assert items["zero_shot"]["state"] == "ok"


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda folder: (folder / "pixels-squash-64x64.npy").write_bytes(b"x"), "is missing or cut short"),
        (lambda folder: (folder / "prepare_report.json").write_text("<html>"), "not valid JSON"),
        (lambda folder: (folder / "prepare_report.json").unlink(), "not prepared in data"),
    ],
)
def test_damaged_preparations_are_missing(
    capsys: pytest.CaptureFixture[str], prepared: list[str], spoil: Any, found: str
) -> None:
    spoil(Path("data/films"))
    assert found in verdict(capsys, prepared, 2)["films train"]["found"]


def test_an_accepted_split_is_told(capsys: pytest.CaptureFixture[str], prepared: list[str]) -> None:
    path = Path("data/films/prepare_report.json")
    report = json.loads(path.read_text())
    report["splits"]["all"]["status"] = "not the published split (12 ids instead of 13)"
    path.write_text(json.dumps(report))
    item = verdict(capsys, prepared, 0)["films train"]
    assert item["state"] == "note"
    assert "splits: not the published split (12 ids instead of 13)" in item["found"]


def test_a_part_that_the_set_lacks(capsys: pytest.CaptureFixture[str], prepared: list[str]) -> None:
    item = verdict(capsys, [*prepared, "corpus.part=tran"], 2)["films tran"]
    assert "unknown value of split 'tran'. Did you mean 'train'?" in item["found"]


def test_missing_weights_come_with_the_command(
    capsys: pytest.CaptureFixture[str], prepared: list[str], tmp_path: Path
) -> None:
    items = verdict(capsys, [*prepared, "--backbone", "biomedclip"], 2)
    assert items["biomedclip"]["state"] == "missing"
    assert (
        items["biomedclip"]["todo"] == "hf download microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
    )
    assert items["time"]["found"] == "not measured: something is missing"


class Small:
    """Files of a backbone that takes small images and more memory than there is."""

    image_size = (32, 48)
    config: ClassVar[dict[str, int]] = {"embed_dim": 10**14}

    def lines(self) -> list[str]:
        return ["weights: here"]

    def values(self) -> int:
        return 10**15


def test_a_size_that_was_not_prepared(
    capsys: pytest.CaptureFixture[str], prepared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "check_backbone", lambda *_, **__: Small())
    items = verdict(capsys, prepared, 2)
    assert items["films test"]["todo"].endswith("--data-root data --crop squash --size 32x48")
    assert items["device"]["state"] == "missing"
    assert items["--data-root"]["state"] == "missing"


def test_generated_data_of_another_size(
    capsys: pytest.CaptureFixture[str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "check_backbone", lambda *_, **__: Small())
    phantom = [word if word != "small.yaml" else "phantom" for word in words]
    items = verdict(capsys, [*phantom, "corpus.n=32"], 2)
    assert "has images of 64 x 64 pixels, the backbone takes 32 x 48" in items["phantom mimic"]["found"]


def test_a_device_that_is_not_here(capsys: pytest.CaptureFixture[str], prepared: list[str]) -> None:
    words = [word if word != "cpu" else "cuda:9" for word in prepared]
    items = verdict(capsys, words, 2)
    assert "'cuda:9' does not exist" in items["device"]["found"]


def test_the_run_checks_weights_before_it_starts(
    capsys: pytest.CaptureFixture[str], prepared: list[str], tmp_path: Path
) -> None:
    assert main([*prepared[1:], "--backbone", "biomedclip", "--jobs", "1"]) == 2
    assert "hf download microsoft/BiomedCLIP" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/runs/*/*"))


# ---------------------------------------------------------------------------- models that tables name
def test_other_models_of_the_tables_are_here_or_come_with_link_and_licence(
    capsys: pytest.CaptureFixture[str], words: list[str], tmp_path: Path
) -> None:
    weights = tmp_path / "mine.ckpt"
    torch.save({"state_dict": {}}, weights)
    named = verdict(capsys, [*words, f"weights.kad={weights}"], 2)
    assert [name for name, item in named.items() if item["group"] == "models"] == ["kad"]
    with Path("small.yaml").open("a") as suite:  # now it stands for the paper's
        suite.write("\npaper: {comparable: false, why: a test}\n")
    items = verdict(capsys, [*words, f"weights.kad={weights}"], 2)
    models = {name: item for name, item in items.items() if item["group"] == "models"}
    assert {"gloria", "biovil", "mgca-vit", "pmc-clip:heads=8", "bmc-clip"} <= set(models)
    assert {item["state"] for item in models.values()} == {"note"}  # none of them stops the run
    assert models["gloria"]["found"] == "not here; licence: Apache-2.0 (code)"
    assert "https://github.com/marshuang80/gloria" in models["gloria"]["todo"]
    assert models["gloria"]["todo"].endswith("weights.gloria=FILE")
    assert models["biovil"]["found"] == "not here; licence: MIT"
    assert "hf download microsoft/BiomedVLP-CXR-BERT-specialized biovil_image" in models["biovil"]["todo"]
    assert "Med-KEBERT" in models["kad"]["found"]  # its weights are named, its words are not here
    assert main([*words, "weights.glori=x", "--json"]) == 2
    assert "unknown backbone 'glori'. Did you mean 'gloria'" in capsys.readouterr().err


def test_a_row_without_its_weights_stops_nothing(
    capsys: pytest.CaptureFixture[str], prepared: list[str], tmp_path: Path
) -> None:
    (tmp_path / "rows.yaml").write_text(
        "experiment:\n  id: own\n  kind: table\n  tasks: {zeroshot: [acc]}\n  rows:\n"
        "    - {title: here, method: zero_shot}\n"
        "    - {title: there, method: zero_shot, backbone: gloria}\n"
    )
    row = [word for word in prepared if word not in ("--methods", "zero_shot,taskres")]
    items = verdict(capsys, [*row, "--config", "rows.yaml"], 0)
    assert items["gloria"]["state"] == "note"
    assert items["tiny"]["state"] == "ok"
