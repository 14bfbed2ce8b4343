"""One cell end to end, and the whole command on small data."""

from __future__ import annotations

import csv
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmark.cli import main
from benchmark.config.run_config import Recipe
from benchmark.console import NullReporter
from benchmark.data.entries import data_entries, needed
from benchmark.errors import CellError, ConfigError, DataError, StoreError
from benchmark.files import configs
from benchmark.plan import CellSpec
from benchmark.preprocess import Fitting
from benchmark.run import cell
from benchmark.run.prepare_suite import prepare_cells, prepare_suite
from benchmark.store.cells import Store
from benchmark.world import ALONE
from tasks.base import TaskContext

SUITE: dict[str, Any] = {
    "name": "small",
    "templates": ["a chest X-ray image of {}."],
    "corpus": {"dataset": "phantom", "part": "mimic", "n": 48},
    "validation": {
        "task": "zeroshot",
        "dataset": "phantom",
        "part": "nih",
        "n": 64,
        "kind": "multilabel",
        "metric": "auroc",
        "min_positives": 1,
        "classes": ["Edema", "Effusion", "Pneumothorax"],
    },
    "tasks": {
        "zeroshot": {
            "bootstrap": 20,
            "datasets": {
                "siim": {
                    "dataset": "phantom",
                    "part": "siim",
                    "n": 32,
                    "kind": "binary",
                    "classes": ["No Finding", "Pneumothorax"],
                    "positive": "Pneumothorax",
                }
            },
        }
    },
}


def spec(root: Path, method: str = "taskres", **changes: Any) -> CellSpec:
    values: dict[str, Any] = {
        "suite_name": "small",
        "suite": SUITE,
        "backbone": "tiny",
        "pretrained": None,
        "method": method,
        "options": {},
        "seed": 0,
        "recipe": Recipe(epochs=2, batch_size=16, lr=1e-2),
        "tasks": SUITE["tasks"],
        "data_root": root,
    }
    return CellSpec(**values | changes)


def run(one: CellSpec, out: Path) -> Any:
    folder = Store(out).cell(one.folder)
    cell.run_cell(one, folder, NullReporter())
    return folder


def test_an_evaluation_that_does_not_fit_takes_fewer_images_at_a_time(tmp_path: Path) -> None:
    one = cell._Cell(spec(tmp_path), Store(tmp_path).cell("a"), NullReporter(), ALONE)
    taken: list[int] = []

    def evaluation(context: TaskContext, most: int = 100) -> str:
        taken.append(context.batch_size)
        assert context.frozen.batch_size == context.batch_size
        if context.batch_size > most:
            raise torch.OutOfMemoryError
        return "scores"

    assert one.with_memory(evaluation) == "scores"
    assert one.with_memory(evaluation) == "scores"  # and remembers
    assert taken == [256, 128, 64, 64]
    with pytest.raises(CellError, match="out of memory in evaluation with one image at a time"):
        one.with_memory(partial(evaluation, most=0))


def test_a_method_that_trains_nothing_needs_no_corpus(tmp_path: Path) -> None:
    gone = {"dataset": "medmnist", "name": "pneumoniamnist", "part": "train"}
    suite = SUITE | {"corpus": gone, "validation": SUITE["validation"] | gone}
    for entry in data_entries(needed(suite, ["zero_shot"])):
        assert entry["dataset"] == "phantom"
    assert needed(suite, ["zero_shot", "coop"]) is suite
    folder = run(spec(tmp_path, "zero_shot", suite=suite), tmp_path / "out")
    told = folder.read_json("adapt.json")
    assert (told["pairs"], told["data_notes"]) == (0, ["no corpus: costs are those of blank pairs"])
    assert folder.read_json("zeroshot.json")["datasets"]["siim"]["n"] == 32
    assert folder.read_json("efficiency.json")["forward_flops_per_pair"] > 0
    with pytest.raises(DataError, match="'medmnist/pneumoniamnist' is not prepared"):
        run(spec(tmp_path, "taskres", suite=suite), tmp_path / "out")


def test_a_method_that_trains_nothing_needs_no_batch_of_pairs(tmp_path: Path) -> None:
    for name, changes in (("few", {"corpus": SUITE["corpus"] | {"n": 8}}), ("none", {"corpus": None})):
        one = spec(tmp_path, "zero_shot", suite=SUITE | changes, recipe=Recipe(batch_size=64))
        told = run(one, tmp_path / name).read_json("adapt.json")
        assert told["pairs"] == (8 if changes["corpus"] else 0)
    few = spec(tmp_path, "taskres", suite=SUITE | {"corpus": SUITE["corpus"] | {"n": 8}})
    with pytest.raises(DataError, match="8 pairs, fewer than one batch of 16"):
        run(few, tmp_path / "few")


def test_data_that_no_cell_can_use_are_said_before_the_first(tmp_path: Path) -> None:
    told: list[str] = []
    reporter = NullReporter()
    reporter.log = told.append  # type: ignore[method-assign]
    fitting = Fitting((224, 224), "squash")
    with pytest.raises(DataError, match="images of 64 x 64 pixels, the backbone takes 224 x 224"):
        prepare_suite(SUITE, tmp_path, reporter, fittings=[fitting])
    maskless = {"segmentation": {"datasets": {"nih": {part: {"dataset": "phantom", "part": "nih", "n": 16, "seed": at}
                for at, part in enumerate(("train", "val", "test"))}}}}  # fmt: skip
    with pytest.raises(DataError, match="has no masks, which this task needs"):
        prepare_suite(SUITE | {"tasks": maskless}, tmp_path, reporter, fittings=[Fitting((64, 64), "squash")])
    many = SUITE | {"validation": SUITE["validation"] | {"min_positives": 40}}
    with pytest.raises(ConfigError, match="no class has 40 positives"):
        prepare_suite(many, tmp_path, reporter)
    prepare_suite(many, tmp_path, reporter, limit=24)
    assert any("no class has 40 positives: min_positives is lowered to" in line for line in told)


def test_a_task_refuses_a_method_once_before_any_data_are_prepared(tmp_path: Path) -> None:
    tasks = {"zeroshot": SUITE["tasks"]["zeroshot"] | {"rule": "gloria"}}
    with pytest.raises(ConfigError, match="backbone 'tiny' does not offer 'gloria', only: global"):
        prepare_cells([spec(tmp_path, tasks=tasks)], NullReporter())
    assert not list(tmp_path.iterdir())


def test_a_cell_leaves_everything_that_was_asked_for(tmp_path: Path) -> None:
    folder = run(spec(tmp_path), tmp_path / "out")
    assert set(folder.read_tensors("adapter.safetensors")) == {"residuals.text", "logit_scale.value"}
    assert [row["epoch"] for row in folder.read_history()] == [0, 1, 2]
    cost = folder.read_json("efficiency.json")
    assert cost["trainable_parameters"] == 65
    assert cost["trainable_parameters_without_logit_scale"] == 64
    assert cost["cached_features"] == ["image", "text"]
    assert cost["step_flops_per_pair"] > 100 * cost["step_flops_per_pair_cached"]
    assert cost["adapter_bytes"] > 0
    assert cost["step_time_p50_s"] > 0
    result = folder.read_json("zeroshot.json")
    assert result["status"] == "success"
    assert result["datasets"]["siim"]["n"] == 32
    samples = folder.read_npz("predictions/zeroshot-siim.npz")
    assert samples["similarity"].shape == (32, 2)
    assert not folder.exists("checkpoint")


@pytest.mark.slow
def test_a_cell_says_what_its_method_has_learnt(tmp_path: Path) -> None:
    learnt = run(spec(tmp_path / "data", "molre"), tmp_path / "out").read_json("efficiency.json")["learnt"]
    assert 0 < learnt["routing_entropy"] <= learnt["routing_entropy_of_equal_weights"]
    assert "learnt" not in run(spec(tmp_path / "data"), tmp_path / "out").read_json("efficiency.json")


def test_a_cell_is_reproducible_bit_by_bit(tmp_path: Path) -> None:
    first = run(spec(tmp_path, "clip_lora"), tmp_path / "a")
    again = run(spec(tmp_path, "clip_lora"), tmp_path / "b")
    assert (first.path / "adapter.safetensors").read_bytes() == (
        again.path / "adapter.safetensors"
    ).read_bytes()
    assert first.read_json("zeroshot.json") == again.read_json("zeroshot.json")
    other = run(spec(tmp_path, "clip_lora", seed=1), tmp_path / "c")
    assert (first.path / "adapter.safetensors").read_bytes() != (
        other.path / "adapter.safetensors"
    ).read_bytes()


def test_operations_are_counted_once_for_all_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def costs(**changes: Any) -> dict[str, Any]:
        told = run(spec(tmp_path, **changes), tmp_path / "out").read_json("efficiency.json")
        return {
            key: value
            for key, value in told.items()
            if "flops" in key or "parameters" in key or "inference" in key
        }

    monkeypatch.setattr(cell, "_COUNTED", {})
    first, counted = costs(), []
    measure = cell.measure_method
    monkeypatch.setattr(
        cell, "measure_method", lambda *args, **how: counted.append(1) or measure(*args, **how)
    )
    assert costs(seed=1) == first
    assert counted == []
    other = costs(seed=2, recipe=Recipe(epochs=2, batch_size=16, lr=1e-2, logit_scale="frozen"))
    assert (len(counted), other["trainable_parameters"]) == (2, first["trainable_parameters"] - 1)


def test_an_adapted_cell_is_only_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run(spec(tmp_path), tmp_path / "out")
    before = folder.read_json("zeroshot.json")
    folder.remove("zeroshot.json")
    monkeypatch.setattr(cell, "Trainer", lambda *_a, **_k: pytest.fail("adapted twice"))
    assert run(spec(tmp_path), tmp_path / "out").read_json("zeroshot.json") == before


def test_test_data_are_opened_after_adaptation_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Store(tmp_path / "out").cell(spec(tmp_path).folder)
    opened: list[tuple[str, bool]] = []
    for module in ("benchmark.run.cell", "tasks.zeroshot"):
        original = sys.modules[module].load_dataset  # type: ignore[attr-defined]

        def watched(entry: Any, *args: Any, original: Any = original) -> Any:
            opened.append((entry["part"], folder.exists("adapter.safetensors")))
            return original(entry, *args)

        monkeypatch.setattr(f"{module}.load_dataset", watched)
    cell.run_cell(spec(tmp_path), folder, NullReporter())
    assert opened == [("mimic", False), ("nih", False), ("siim", True)]


def test_an_adapter_of_other_options_is_refused(tmp_path: Path) -> None:
    run(spec(tmp_path, "clip_adapter"), tmp_path / "out")
    with pytest.raises(StoreError, match="has shape"):
        run(spec(tmp_path, "clip_adapter", options={"reduction": 8}), tmp_path / "out")


def test_a_suite_without_validation_says_so(tmp_path: Path) -> None:
    without = {key: value for key, value in SUITE.items() if key != "validation"}
    with pytest.raises(ConfigError, match="validation needs the keys metric, task"):
        run(spec(tmp_path, suite=without), tmp_path / "out")


def small_phantom(folder: Path) -> Path:
    """Write the embedded suite with few films in each set."""
    suite = yaml.safe_load(configs("suites", "phantom.yaml").read_text(encoding="utf-8"))
    suite["tasks"] = {"zeroshot": suite["tasks"]["zeroshot"]}
    for entry in (suite["corpus"], suite["validation"], *suite["tasks"]["zeroshot"]["datasets"].values()):
        entry["n"] = 100
    (folder / "phantom.yaml").write_text(yaml.safe_dump(suite), encoding="utf-8")
    return folder / "phantom.yaml"


@pytest.mark.slow
def test_the_main_command_and_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--suite", str(small_phantom(tmp_path)), "--methods", "zero_shot,clip_adapter", "--tasks", "zeroshot",
             "--jobs", "1", "--seeds", "0,1", "--device", "cpu", "validation.min_positives=1",
             "tasks.zeroshot.bootstrap=50", "--output-dir", str(tmp_path / "out"),
             "--data-root", str(tmp_path / "data")]  # fmt: skip
    assert main(words) == 0
    assert (
        "3 cells: 3 done" in capsys.readouterr().out
    )  # zero-shot draws nothing: one run stands for both seeds
    with (tmp_path / "out/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["method"], row["seed"]) for row in rows} == {
        ("zero_shot", "0"),
        ("clip_adapter", "0"),
        ("clip_adapter", "1"),
    }
    assert {row["dataset"] for row in rows} == {"chexpert_5x200", "rsna", "siim"}
    assert {"acc", "auroc", "balanced_acc", "majority_acc"} <= {row["metric"] for row in rows}
    report = tmp_path / "out/report"
    for name in (
        "table_1.csv",
        "table_1.md",
        "table_1.tex",
        "index.html",
        "efficiency.csv",
    ):
        assert (report / name).stat().st_size > 0, name
    assert "CLIP-Adapter" in (report / "table_1.md").read_text()
    provenance = json.loads(
        (tmp_path / "out/runs/phantom/tiny/clip_adapter/seed-1/provenance.json").read_text()
    )
    assert str(tmp_path) not in json.dumps(provenance)

    assert main(words) == 0
    assert "3 reused" in capsys.readouterr().out
