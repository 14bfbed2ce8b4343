"""The clean test: scores without the test images that the model has seen stand beside those of the published test."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.cli import main
from benchmark.console import NullReporter
from benchmark.metrics.bootstrap import metrics_report
from benchmark.metrics.classification import zero_shot_metrics
from benchmark.preprocess import Fitting
from benchmark.report.report import read_report
from benchmark.run.checks.overlap import check, facts, leaked, overlaps
from benchmark.store.cells import Store
from tasks.base import DatasetResult, measured_metrics
from tasks.zeroshot import CLASSIFICATION
from tests.data import real
from tests.run.checks.test_leaks import LABELS, film, table

SHOWN = [metric.name for metric in CLASSIFICATION]


def result(similarity: np.ndarray, targets: np.ndarray, patients: list[str] | None) -> DatasetResult:
    data = SimpleNamespace(ids=[f"i{row}" for row in range(len(targets))], clusters=patients)
    formulas = zero_shot_metrics("multiclass", similarity, 5.0, targets)
    return DatasetResult.of("multiclass", formulas, data, {"similarity": similarity}, {}, resamples=20)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_clean_scores_are_those_of_the_rest_alone(data):
    count = data.draw(st.integers(2, 30))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    similarity, targets = rng.normal(size=(count, 3)), rng.integers(0, 3, count)
    patients = [f"p{row // 2}" for row in range(count)] if data.draw(st.booleans()) else None
    seen = data.draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(any))
    leak = np.array(seen)
    whole = result(similarity, targets, patients)
    found = whole.without({f"i{row}" for row in np.flatnonzero(leak)}, CLASSIFICATION)
    assert {name: found.metrics[name] for name in whole.metrics} == whole.metrics
    np.testing.assert_array_equal(found.predictions["leak"], leak)
    assert found.info["clean"] == {"n": int((~leak).sum()), "left_out": int(leak.sum())}
    if leak.all():
        assert found.metrics["acc_clean"] == {"value": None, "ci_low": None, "ci_high": None, "n": 0}
        return
    rest = None if patients is None else [patients[row] for row in np.flatnonzero(~leak)]
    formulas = zero_shot_metrics("multiclass", similarity[~leak], 5.0, targets[~leak])
    alone = metrics_report(formulas, int((~leak).sum()), rest, resamples=20)
    for name in SHOWN:
        assert found.metrics[f"{name}_clean"] == pytest.approx(alone[name], nan_ok=True), name


def test_a_test_without_leaks_has_no_clean_scores_and_neither_has_a_stored_result():
    whole = result(np.eye(3), np.arange(3), None)
    assert whole.without({"elsewhere"}, CLASSIFICATION) is whole
    stored = DatasetResult(3, "multiclass", {}, {"image_id": np.array(["a", "b", "c"])})
    assert stored.without({"a"}, CLASSIFICATION) is stored


def test_leaks_inside_a_split_are_told_and_stop_nothing(tmp_path: Path) -> None:
    """Labelled images 0 to 5; tested: 3 under another label, a near copy of 2, a film of patient p1, a new one."""
    pool = [(film(tmp_path / "films" / f"{i}.png", i), f"p{i}") for i in range(6)]
    others = [(film(tmp_path / "others" / f"{i}.png", 100 + i), f"q{i}") for i in range(2)]
    copy = PIL.Image.open(tmp_path / "films" / "2.png").resize((150, 100), PIL.Image.Resampling.BILINEAR)
    copy.save(tmp_path / "others" / "copy.jpg", quality=60)
    tested = [("films/3.png", "q5"), ("others/copy.jpg", "q6"), (others[0][0], "p1"), others[1]]
    names = [table(tmp_path / f"{len(rows)}.csv", rows) for rows in (pool, tested)]
    wanted = {
        "corpus": {"dataset": "csv", **LABELS, "file": names[0]},
        "support": {"dataset": "films", "shots": 1},
        "tasks": {"zeroshot": {"datasets": {"films": {"dataset": "csv", **LABELS, "file": names[1]}}}},
    }
    found = overlaps(wanted, tmp_path / "data", NullReporter(), fitting=Fitting((64, 64)))
    check(found, allow=False)
    pool_name = "the labelled images of 'films'"
    lines = {
        f"1 of 4 images are also in {pool_name}": "'films/3.png'",
        f"1 of 4 images have other labels in {pool_name}": "'films/3.png' and 'films/3.png'",
        f"1 of 4 images are near copies of images in {pool_name}": "'others/copy.jpg' of 'films/2.png'",
        f"1 of 4 images are of 1 patients of {pool_name}": "'others/0.png'",
    }
    assert [dict(item.parts()) for item in found] == [lines]
    assert leaked(found, "zeroshot", "films") == {"films/3.png", "others/copy.jpg", "others/0.png"}
    assert leaked(found, "zeroshot", "another") == set()
    assert facts(found, "zeroshot", "films")["data_notes"] == ["; ".join(lines)]


def test_a_file_with_two_labels_is_told_with_every_test_set_of_the_split(tmp_path: Path) -> None:
    pool = [(film(tmp_path / "films" / f"{i}.png", i), "") for i in range(4)]
    (tmp_path / "films" / "1.png").write_bytes((tmp_path / "films" / "0.png").read_bytes())
    others = [(film(tmp_path / "others" / "0.png", 100), "")]
    names = [table(tmp_path / f"{len(rows)}.csv", rows) for rows in (pool, others)]
    wanted = {
        "corpus": {"dataset": "csv", **LABELS, "file": names[0]},
        "support": {"dataset": "films", "shots": 1},
        "tasks": {"zeroshot": {"datasets": {"films": {"dataset": "csv", **LABELS, "file": names[1]}}}},
    }
    found = overlaps(wanted, tmp_path / "data", NullReporter(), fitting=Fitting((64, 64)))
    assert [str(item) for item in found] == [
        "the labelled images of 'films': 1 of 4 images occur more than once ('films/1.png'); "
        "1 of 4 images have two labels ('films/1.png' and 'films/0.png')"
    ]
    (told,) = facts(found, "zeroshot", "films")["overlaps"]
    assert told["text"] == (
        "the labelled images of 'films': 1 of 4 images occur more than once; 1 of 4 images have two labels"
    )


def test_tables_show_the_clean_test_beside_the_published_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    similarity, targets = rng.normal(size=(40, 3)), rng.integers(0, 3, 40)
    suite = {"name": "toy", "tasks": {"zeroshot": {"datasets": {"films": {"title": "Films"}}}}}
    found = result(similarity, targets, None).without({f"i{row}" for row in range(8)}, CLASSIFICATION)
    for method in ("zero_shot", "coop"):
        cell = Store(tmp_path).cell(f"runs/toy/tiny/{method}/seed-0")
        cell.write_config(
            {"suite_name": "toy", "backbone": "tiny", "method": method, "seed": 0, "suite": suite}
        )
        cell.write_json("status.json", {"status": "success"})
        declared = {metric.name: metric.stored() for metric in measured_metrics(CLASSIFICATION, [found])}
        content = {"n": found.n, "metrics": found.metrics, "info": found.info}
        cell.write_json(
            "zeroshot.json", {"status": "success", "metrics": declared, "datasets": {"films": content}}
        )
    (table,) = read_report(tmp_path).rendered
    assert [column.full for column in table.columns[1:]] == [
        f"Films {head} [%], n = {n}"
        for n, end in ((40, ""), (32, " clean"))
        for head in (f"{name}{end}" for name in ("ACC", "bal. ACC", "AUROC"))
    ]


@pytest.fixture(scope="module")
def busi(tmp_path_factory) -> tuple[Path, list[str]]:
    """Return where a run over BUSI goes, and its command."""
    folder = real.folder("busi")
    root = tmp_path_factory.mktemp("busi")
    entry = {
        "dataset": "coop_json",
        "file": str(folder / "split_BUSI.json"),
        "part": "test",
        "published": "BUSI",
    }
    entry |= {"kind": "multiclass", "classes": ["benign tumor", "malignant tumor", "normal scan"]}
    suite = {"name": "busi", "backbone": "tiny", "templates": ["a photo of a {}."]}
    suite["tasks"] = {"zeroshot": {"bootstrap": 20, "datasets": {"busi": entry}}}
    (root / "busi.yaml").write_text(yaml.safe_dump(suite))
    words = ["--suite", str(root / "busi.yaml"), "--protocol", "fewshot", "--shots", "4", "--seeds", "0",
             "--methods", "zero_shot,ss_text", "--data-root", str(root / "data"), "--output-dir", str(root / "out"),
             "--device", "cpu", "--jobs", "1"]  # fmt: skip
    return root, words


def test_busi_end_to_end_with_its_published_split(busi, capsys: pytest.CaptureFixture[str]) -> None:
    """Real pixels, published split, a model that knows nothing of ultrasound: a proof of the path, not of medicine."""
    root, words = busi
    both = "'malignant_tumor/malignant (145).png' and 'benign_tumor/benign (433).png'"
    twice = f"1 of 389 images have two labels ({both})"
    near = "25 of 236 images are near copies of images in the labelled images of 'busi'"
    assert main(words) == 0
    capsys.readouterr()
    assert main(["validate", *words, "--images", "--json"]) == 0
    items = {item["found"] for item in json.loads(capsys.readouterr().out)["items"]}
    assert any(twice in found for found in items)
    assert any(near in found for found in items)
    cells = sorted((root / "out" / "runs").rglob("zeroshot.json"))
    assert len(cells) == 2
    for cell in cells:
        found = json.loads(cell.read_text())["datasets"]["busi"]
        assert found["info"]["clean"] == {"n": 211, "left_out": 25}
        assert found["info"]["data_split"]["test"]["status"] == "published"
        assert [about["text"] for about in found["info"]["overlaps"]][0] == near
        stored = np.load(cell.parent / "predictions" / "zeroshot-busi.npz")
        right = stored["similarity"].argmax(axis=1) == stored["target"]
        assert found["metrics"]["acc"]["value"] == pytest.approx(right.mean())
        assert found["metrics"]["acc_clean"]["value"] == pytest.approx(right[~stored["leak"]].mean())
        assert (found["metrics"]["acc"]["n"], found["metrics"]["acc_clean"]["n"]) == (236, 211)
