"""Few-shot protocols: from the request to cells, one cell end to end, and what results say of it."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmark.backbones import load_backbone
from benchmark.backbones.towers.base import Tower
from benchmark.cli import main
from benchmark.config.declared import Suite
from benchmark.config.load import load_config
from benchmark.console import NullReporter
from benchmark.data.fewshot import coop_draw, realistic_draw, strict_draw
from benchmark.errors import ConfigError
from benchmark.files import ROOT
from benchmark.plan import CellSpec, make_plan
from benchmark.run.execute import execute_cell
from benchmark.run.few_labels import FewLabels
from benchmark.run.training.trainer import Trainer
from benchmark.settings import read
from benchmark.store.cells import CellFolder, Store
from tests.small import context

CLASSES = ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"]
FILMS = {"dataset": "phantom", "part": "chexpert_5x200", "kind": "multiclass", "classes": CLASSES, "n": 60}
SIIM = {"dataset": "phantom", "part": "siim", "n": 32, "kind": "binary", "classes": ["No Finding", "Pneumothorax"],
        "positive": "Pneumothorax"}  # fmt: skip
SUITE: dict[str, Any] = {
    "name": "few",
    "templates": ["a chest X-ray image of {}."],
    "tasks": {"zeroshot": {"bootstrap": 20, "datasets": {"films": FILMS, "siim": SIIM}}},
    "fewshot": {
        "datasets": {"films": {"seed": 5, "n": 60, "train": {}, "val": {"seed": 6, "n": 40}}},
        "recipe": {"epochs": 2, "lr": 1e-2},
        "methods": {"coop": {"recipe": {"epochs": 3}}},
    },
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    (folder / "few.yaml").write_text(yaml.safe_dump(SUITE))
    return folder


def flags(site: Path, **changes: Any) -> dict[str, Any]:
    given = {"suite": str(site / "few.yaml"), "protocol": "fewshot", "methods": "zero_shot,coop,clap"}
    return (
        given | {"device": "cpu", "data_root": str(site / "data"), "output_dir": str(site / "out")} | changes
    )


def specs(site: Path, **changes: Any) -> list[CellSpec]:
    config = load_config(flags(site, **changes))
    return [planned.spec for planned in make_plan(config, Store(config.output_dir)).cells]


def problems(site: Path, **changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load_config(flags(site, **changes))
    return list(raised.value.problems)


def run(spec: CellSpec, out: Path) -> CellFolder:
    outcome = execute_cell(spec, Store(out), NullReporter())
    assert outcome.status == "done", outcome.error + outcome.trace
    return Store(out).cell(spec.folder)


# --- plan ---------------------------------------------------------------------------------------------------


def test_a_cell_is_a_method_a_dataset_a_number_of_shots_and_a_seed(site: Path) -> None:
    cells = specs(site, shots="1,4")
    counts = {name: sum(spec.method == name for spec in cells) for name in ("zero_shot", "coop", "clap")}
    assert counts == {"zero_shot": 1, "coop": 2 * 5, "clap": 2 * 20}  # 5 seeds, 20 of closed forms
    assert len({spec.folder for spec in cells}) == len(cells)
    coop = next(spec for spec in cells if spec.method == "coop")
    assert coop.cell == "coop+protocol=fewshot,dataset=films,shots=1"
    assert coop.suite["support"] == {
        "protocol": "fewshot", "dataset": "films", "shots": 1, "sampling": "standard", "selection": "strict",
    }  # fmt: skip
    assert (coop.suite["corpus"]["seed"], coop.suite["corpus"]["classes"]) == (5, CLASSES)
    assert "validation" not in coop.suite
    assert (coop.recipe.epochs, coop.recipe.lr, coop.recipe.batch_size, coop.recipe.select) == (
        3,
        1e-2,
        32,
        "last",
    )
    assert list(coop.tasks) == ["zeroshot"]
    assert list(coop.tasks["zeroshot"]["datasets"]) == ["films"]
    assert CellSpec.from_dict(coop.to_dict()).adapt_hash == coop.adapt_hash


def test_protocols_say_seeds_shots_and_what_is_evaluated(site: Path) -> None:
    def asked(**changes: Any) -> tuple[set[int], set[int], list[str]]:
        found = specs(site, methods="coop", **changes)
        shots = {spec.suite["support"]["shots"] for spec in found}
        return {spec.seed for spec in found}, shots, list(found[0].tasks["zeroshot"]["datasets"])

    assert asked() == (set(range(5)), {1, 2, 4, 8, 16}, ["films"])
    assert asked(protocol="base_to_new") == (set(range(5)), {16}, ["films-base", "films-new"])
    assert asked(protocol="cross_dataset") == (set(range(5)), {16}, ["films", "siim"])
    assert asked(sampling="realistic", shots="2") == (set(range(50)), {2}, ["films"])
    assert asked(selection="coop", shots="2") == ({1, 2, 3}, {2}, ["films"])
    assert asked(seeds="7", shots="2") == ({7}, {2}, ["films"])
    named = {spec.cell for spec in specs(site, methods="coop", sampling="realistic", shots="2")}
    assert named == {"coop+protocol=fewshot,dataset=films,shots=2,sampling=realistic"}
    (coop, *_) = specs(site, methods="coop", selection="coop", shots="2")
    assert (coop.suite["validation"]["seed"], coop.suite["validation"]["task"]) == (6, "zeroshot")


def test_what_learns_from_pairs_keeps_its_hash_beside_a_few_shot_section(site: Path, tmp_path: Path) -> None:
    pairs = SUITE | {
        "corpus": {"dataset": "phantom", "part": "mimic", "n": 32},
        "validation": SIIM | {"kind": "multiclass", "task": "zeroshot", "metric": "auroc"},
    }
    hashes = []
    for number, suite in enumerate((pairs, {key: pairs[key] for key in pairs if key != "fewshot"})):
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump(suite))
        (spec,) = specs(site, suite=str(tmp_path / f"{number}.yaml"), protocol="pairs", methods="coop")
        assert (spec.folder, spec.recipe.epochs) == ("runs/few/tiny/coop/seed-0", 40)
        hashes.append(spec.adapt_hash)
    assert hashes[0] == hashes[1]


def test_what_cannot_be_run_is_one_line(site: Path) -> None:
    assert problems(site, protocol="base_to_new", methods="clap,coop") == [
        "--methods: clap are bound to the classes that they learn from, and base_to_new asks for others. "
        "Leave them out"
    ]
    (line,) = problems(site, methods="biomedcoop")
    assert line.startswith("--methods: biomedcoop need sentences about each class")
    assert problems(site, protocol="pairs", shots="4", methods="zero_shot") == [
        "--shots: only with protocol=fewshot, base_to_new or cross_dataset"
    ]
    assert problems(site, sampling="realistic", selection="coop") == [
        "--sampling: selection=coop draws as many images of each class. Leave one of them out"
    ]
    (line,) = problems(site, datasets="siim")
    assert line.startswith("dataset 'siim': nothing says where labelled images for training are")
    (line,) = problems(site, datasets="film")
    assert "unknown dataset 'film'" in line
    assert problems(site, shots="0")[0].startswith("--shots: expected a value of at least 1, got ")
    with pytest.raises(ConfigError, match=r"recipe\.select: few-shot protocols keep the last step"):
        load_config(flags(site, methods="coop"), ["recipe.select=best"])
    with pytest.raises(ConfigError, match=r"fewshot\.datasets\.films\.sed: unknown data key"):
        load_config(flags(site), ["fewshot.datasets.films.sed=3"])
    with pytest.raises(ConfigError, match="no task is selected that few-shot protocols evaluate"):
        load_config(flags(site, tasks="none"))


def test_a_group_leaves_out_what_cannot_be_run_and_says_so(site: Path) -> None:
    config = load_config(flags(site, protocol="base_to_new", methods="all,fewshot"))
    assert "clap" not in config.methods
    assert "biomedcoop" not in config.methods
    assert {"coop", "kgcoop", "prograd", "clip_svd", "maple"} <= set(config.methods)
    (line,) = [line for line in config.notes if "methods that are bound" in line]
    assert line.startswith("clap, linear_probe, ")


def test_the_plan_is_shown_without_running(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--{key.replace('_', '-')}={value}" for key, value in flags(site, shots="1,4").items()]
    assert main(["run", *words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "plan: 51 of 51 cells to run" in out
    assert re.search(r"coop\+protocol=fewshot,dataset=films,shots=4 +0-4 ", out)
    assert "cross-entropy over the classes" in " ".join(out.split())
    assert "loss label_guided" not in " ".join(out.split())
    assert not (site / "out").exists()


@pytest.mark.parametrize(
    ("changes", "supports", "coop"),
    [
        (
            {"shots": "1,20"},
            "60 labelled images of 5 classes; 1 shot: 5 labels; 20 shots: 60 labels; fewer than 20 images, so that all "
            "are drawn: " + ", ".join(f"{name} (12)" for name in CLASSES),
            "10 cells (1 dataset x 2 numbers of shots x 5 seeds); 3 steps each",
        ),
        (
            {"selection": "coop", "shots": "2"},
            "60 labelled images of 5 classes; 2 shots: 10 labels and 10 for validation",
            "3 cells (1 dataset x 1 number of shots x 3 seeds); 3 steps each",
        ),
        (
            {"protocol": "base_to_new", "shots": "4", "methods": "zero_shot,coop"},
            "36 labelled images of 5 classes, 3 of them base; 4 shots: 12 labels",
            "5 cells (1 dataset x 1 number of shots x 5 seeds); 3 steps each",
        ),
    ],
)
def test_validate_counts_supports_classes_and_cells(
    site: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], supports: str, coop: str
) -> None:
    words = [f"--{key.replace('_', '-')}={value}" for key, value in flags(site, **changes).items()]
    assert main(["validate", *words, "--json"]) == 0
    found = {item["name"]: item["found"] for item in json.loads(capsys.readouterr().out)["items"]}
    assert found["supports of films"] == supports
    assert found["coop"] == coop
    assert found["zero_shot"] == "1 cell (1 dataset); nothing is learnt"
    if "clap" in found:
        assert found["clap"].endswith("fitted to frozen features, without training")


# --- draws --------------------------------------------------------------------------------------------------


def test_strict_supports_lie_in_larger_ones_and_take_as_many_patients_as_there_are() -> None:
    labels = [0] * 12 + [1] * 3
    patients = [f"p{row // 4}" for row in range(12)] + ["p0", "q", "q"]
    drawn = {shots: strict_draw(labels, patients, shots, seed=3) for shots in (1, 2, 3, 5)}
    for shots, rows in drawn.items():
        mine = [row for row in rows if labels[row] == 0]
        assert len(mine) == shots
        assert len({patients[row] for row in mine}) == min(shots, 3)
        assert sum(labels[row] == 1 for row in rows) == min(shots, 3)
    assert set(drawn[1]) < set(drawn[2]) < set(drawn[3]) < set(drawn[5])
    assert strict_draw(labels, None, 3, seed=3) != strict_draw(labels, None, 3, seed=4)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"selection": "coop"}, lambda pool, more, seed: list(coop_draw(pool, more, 2, seed))),
        ({"sampling": "realistic"}, lambda pool, _, seed: [realistic_draw(pool, 2, seed), []]),
    ],
)
def test_a_cell_draws_by_the_rule_of_its_protocol(site: Path, changes: dict[str, str], rule: Any) -> None:
    for spec in specs(site, methods="coop", shots="2", **changes)[:2]:
        few = FewLabels(spec, context(load_backbone("tiny"), site / "data"))
        more = [] if few.spec.suite.get("validation") is None else few._validation.targets.tolist()
        assert list(few.rows) == rule(few.pool.targets.tolist(), more, spec.seed)
        assert few.support.ids == [few.pool.ids[row] for row in few.rows.train]
        counted = few.facts()
        assert counted["labels"] == len(few.rows.train) + len(few.rows.validation)
        assert sum(counted["images_of_class"].values()) == len(few.support)


# --- cells --------------------------------------------------------------------------------------------------


def test_base_and_new_share_one_adaptation(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    whole = Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda self: trained.append(self) or whole(self))
    (spec,) = specs(site, methods="coop", protocol="base_to_new", shots="4", seeds="1")
    folder = run(spec, tmp_path)
    assert len(trained) == 1
    found = folder.read_json("zeroshot.json")["datasets"]
    assert {name: one["info"]["classes"] for name, one in found.items()} == {
        "films-base": CLASSES[:3],
        "films-new": CLASSES[3:],
    }
    assert [one["n"] for one in found.values()] == [36, 24]
    adapted = folder.read_json("adapt.json")
    assert adapted["images_of_class"] == dict.fromkeys(CLASSES[:3], 4)
    assert (adapted["labels"], adapted["labels_for_validation"], len(adapted["support"])) == (12, 0, 16)
    assert folder.read_history()[-1]["step"] == 3  # 12 images are one batch, three passes
    store = Store(tmp_path)
    store.rebuild_results_csv()
    with (tmp_path / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "balanced_acc"]
    assert [(row["protocol"], row["shots"], row["dataset"], row["subset"]) for row in rows] == [
        ("base_to_new", "4", "films", "base"),
        ("base_to_new", "4", "films", "new"),
    ]


def test_a_bound_method_goes_on_from_its_stored_adapter(site: Path, tmp_path: Path) -> None:
    (spec,) = specs(site, methods="clap", shots="4", seeds="0")
    folder = run(spec, tmp_path)
    result, adapter = folder.read_json("zeroshot.json"), folder.read_tensors("adapter.safetensors")
    costs = folder.read_json("efficiency.json")
    assert costs["trainable_parameters"] == adapter["fitted.weights"].numel()
    folder.remove("zeroshot.json")
    config = load_config(flags(site, methods="clap", shots="4", seeds="0", output_dir=str(tmp_path)))
    (planned,) = make_plan(config, Store(tmp_path)).cells
    assert planned.state == "partial"
    changed = folder.path.joinpath("adapter.safetensors").stat().st_mtime_ns
    assert run(planned.spec, tmp_path).read_json("zeroshot.json") == result
    assert folder.path.joinpath("adapter.safetensors").stat().st_mtime_ns == changed
    assert make_plan(config, Store(tmp_path)).cells[0].state == "done"


def test_a_fitted_cell_passes_no_image_through_the_tower_after_the_first(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = []
    features = Tower.features
    monkeypatch.setattr(
        Tower,
        "features",
        lambda self, inputs, *rest, **more: (
            passed.append(len(inputs)) or features(self, inputs, *rest, **more)
        ),
    )
    made, inputs = [], []
    for spec in specs(site, methods="clap", shots="2,4", seeds="0,1"):
        cell = dataclasses.replace(spec, data_root=tmp_path / "data")
        made.append(run(cell, tmp_path / "out").read_tensors("adapter.safetensors")["fitted.weights"].numpy())
        inputs.append(sum(passed))
        passed.clear()
    assert inputs[0] >= 60 + 60 + 5  # the pool, the test images, the prompts of the classes
    assert inputs[1:] == [0, 0, 0]
    assert not any(np.array_equal(one, made[0]) for one in made[1:])


def test_one_source_is_evaluated_on_all_datasets(site: Path, tmp_path: Path) -> None:
    (spec,) = specs(site, methods="taskres", protocol="cross_dataset", shots="2", seeds="0")
    assert sorted(run(spec, tmp_path).read_json("zeroshot.json")["datasets"]) == ["films", "siim"]


def test_one_residual_per_class_learns_from_labels(site: Path, tmp_path: Path) -> None:
    own = ["methods.taskres.rows=per_class", "methods.taskres.n_classes=5"]
    config = load_config(flags(site, methods="taskres", shots="2", seeds="0", output_dir=str(tmp_path)), own)
    (planned,) = make_plan(config, Store(tmp_path)).cells
    folder = run(planned.spec, tmp_path)
    assert folder.read_tensors("adapter.safetensors")["residuals.text"].shape == (5, 64)
    assert folder.read_json("efficiency.json")["inference_flops_per_text"] > 0


def test_searches_see_validation_labels_in_the_published_protocol_alone(site: Path, tmp_path: Path) -> None:
    seen = {}
    for selection in ("strict", "coop"):
        (spec,) = specs(site, methods="linear_probe", selection=selection, shots="2", seeds="1")
        seen[selection] = run(spec, tmp_path).read_json("adapt.json")
    assert (seen["strict"]["labels"], seen["coop"]["labels"]) == (10, 20)
    assert seen["coop"]["labels_for_validation"] == 10


def test_the_commands_of_the_page_are_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "fewshot.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    python run_benchmark\.py (run .*--protocol .*)$", page, re.M)
    assert len(commands) >= 4
    for command in commands:
        assert (
            main([*command.split(), "--methods", "coop", "--dry-run", "--output-dir", str(tmp_path)]) == 0
        ), command
        assert "cells to run" in capsys.readouterr().out
    (section,) = re.findall(r"```yaml\n(fewshot:.*?)```", page, re.S)
    assert read(Suite, {"name": "x"} | yaml.safe_load(section), str)[1] == []
