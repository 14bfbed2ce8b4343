"""From downloads to report, once through the command line: every dataset of a suite prepared, some methods run."""

from __future__ import annotations

import csv
import json

import pytest
import yaml

from benchmark import machine
from benchmark.cli import main
from benchmark.console import NullReporter
from benchmark.data.entries import load_dataset
from benchmark.data.samples import pairs
from benchmark.files import configs
from benchmark.preprocess import Fitting
from benchmark.registry import DATASETS
from benchmark.report.paper import load_paper
from tests.data import trees

# Few resamples and few steps: this is about the way through, not about numbers.
RUN = (
    "--tasks",
    "zeroshot",
    "--backbone",
    "random:tiny",
    "--max-steps",
    "2",
    "--batch-size",
    "8",
    "--device",
    "cpu",
)
QUICK = ("--jobs", "1", "--seeds", "0", "tasks.zeroshot.bootstrap=10")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """One thread, as everywhere in the tests: two that share two cores with other tests only wait for each other."""
    monkeypatch.setattr(machine, "limit_threads", lambda _, limit=machine.limit_threads: limit(1))


def suite(name):
    return yaml.safe_load(configs("suites", f"{name}.yaml").read_text(encoding="utf-8"))


def prepare_all(raw, data_root):
    for name, folder in raw.items():
        words = ["prepare", name, "--raw", folder, "--data-root", data_root, "--size", "64", "--accept-split"]
        assert main([*map(str, words), "--num-workers", "1"]) == 0


def results(folder):
    """Return the rows of results.csv and check that a report was written."""
    assert (folder / "report" / "index.html").stat().st_size > 10_000
    with (folder / "results.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run_suite(suite, methods, tmp_path):
    places = ("--data-root", str(tmp_path / "data"), "--output-dir", str(tmp_path / "results"))
    assert main(["--suite", suite, "--methods", methods, *RUN, *places, *QUICK]) == 0
    return results(tmp_path / "results")


@pytest.mark.slow
def test_radiology_from_downloads_to_report(tmp_path):
    prepare_all(trees.make_radiology(tmp_path / "raw"), tmp_path / "data")
    rows = run_suite("radiology", "zero_shot,coop,ace_lora", tmp_path)
    assert {row["status"] for row in rows} == {"success"}
    assert {row["method"] for row in rows} == {"zero_shot", "coop", "ace_lora"}
    counts = {row["dataset"]: row["n"] for row in rows if row["metric"] == "acc"}
    assert counts == {"chexpert_5x200": "20", "rsna": "9", "siim": "18"}
    assert {row["metric"] for row in rows} >= {"acc", "balanced_acc", "majority_acc", "auroc"}
    cell = tmp_path / "results" / "runs" / "radiology"
    info = json.loads(next(cell.glob("*/zero_shot/seed-0/zeroshot.json")).read_text())["datasets"]["rsna"][
        "info"
    ]
    assert info["classes"] == ["No Finding", "Pneumonia"]
    assert info["templates"] == ["a chest X-ray image of {}.", "Findings suggesting {}."]
    assert "not the published split" in json.dumps(info)


@pytest.mark.slow
def test_histopathology_from_downloads_to_report(tmp_path):
    prepare_all(trees.make_histopathology(tmp_path / "raw"), tmp_path / "data")
    rows = run_suite("histopathology", "zero_shot,clip_adapter", tmp_path)
    assert {row["status"] for row in rows} == {"success"}
    counts = {row["dataset"]: row["n"] for row in rows if row["metric"] == "acc"}
    assert counts == {"lc25000_lung": "30", "lc25000_colon": "20", "mhist": "30"}


def test_openi_is_a_corpus_without_labels(tmp_path):
    prepare_all({"openi": trees.make_openi(tmp_path / "raw", reports=12)}, tmp_path / "data")
    entry = suite("radiology_openi")["corpus"]
    corpus = pairs("openi", load_dataset(entry, tmp_path / "data", NullReporter(), Fitting((64, 64))))
    assert len(corpus) == 11
    assert corpus.labels is None  # so that the label-guided loss is the plain one
    assert corpus.texts[0] == "The lungs of case 1 are clear & wide. No acute disease in case 1."


def test_openi_suite_differs_from_radiology_in_its_corpus_alone():
    one, other = suite("radiology"), suite("radiology_openi")
    assert other["paper"]["comparable"] is False
    same = one.keys() - {"name", "title", "corpus", "paper"}
    assert {key: one[key] for key in same} == {key: other[key] for key in same}


@pytest.mark.parametrize("name", ["radiology", "radiology_openi", "histopathology"])
def test_suites_name_datasets_and_numbers_of_the_paper_that_exist(name):
    content = suite(name)
    datasets = content["tasks"]["zeroshot"]["datasets"]
    tables = {key: value for key, value in content["paper"].items() if key.startswith("table_")}
    for key, mapping in tables.items():
        paper = load_paper().table(key.removeprefix("table_"))
        assert set(mapping) <= set(paper["dataset"])
        assert set(mapping.values()) <= set(datasets)
    for entry in (content["corpus"], content["validation"], *datasets.values()):
        assert entry["dataset"] in DATASETS.names()
    assert all(template.count("{}") == 1 for template in content["templates"])
