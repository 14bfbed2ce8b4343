"""The segmentation task: its loss, one small run end to end, and what several methods share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tasks.dense
from benchmark.backbones import load_backbone
from benchmark.backbones.backbone import tower_digest
from benchmark.config.load import load_config
from benchmark.config.run_config import Recipe
from benchmark.console import NullReporter
from benchmark.data.entries import data_entries
from benchmark.errors import ConfigError
from benchmark.metrics.segmentation import Overlaps, dice_per_image
from benchmark.plan import CellSpec
from benchmark.registry import TASKS
from benchmark.run import cell
from benchmark.run.shared_results import forget_image_tower
from benchmark.store.cells import Store
from tasks.base import DatasetResult
from tasks.segmentation import SegmentationOptions, SegmentationTask, tversky_loss
from tests.small import context, method
from tests.tasks.test_dense import SIIM

SMALL = {
    "width": 8,
    "epochs": 1,
    "lr": 1e-3,
    "rotation": 5.0,
    "bootstrap": 20,
    "panels": 3,
    "untrained": False,
}


# --- loss ----------------------------------------------------------------------------------------------------


def test_tversky_is_soft_dice_at_one_half_and_zero_for_a_perfect_answer() -> None:
    generator = torch.Generator().manual_seed(0)
    p, g = torch.rand(2, 5, 5, generator=generator), (torch.rand(2, 5, 5, generator=generator) < 0.3).float()
    dice = 2 * (p * g).sum() / (p.sum() + g.sum())
    assert float(tversky_loss(p, g, alpha=0.5, beta=0.5, eps=0.0)) == pytest.approx(float(1 - dice), abs=1e-6)
    assert float(tversky_loss(g, g)) == 0
    assert float(tversky_loss(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))) == 0


def test_tversky_by_hand_and_missed_pixels_cost_more() -> None:
    truth = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    missed, excess = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]), torch.tensor([[[1.0, 1.0, 1.0, 0.0]]])
    assert float(tversky_loss(missed, truth)) == pytest.approx(1 - 2 / (1 + 0.7 + 1))
    assert float(tversky_loss(excess, truth)) == pytest.approx(1 - 3 / (2 + 0.3 + 1))
    assert float(tversky_loss(missed, truth, eps=0.0)) > float(tversky_loss(excess, truth, eps=0.0))


@pytest.mark.parametrize("rescale", [(4.0, 2.0), (4.0, 4.0, 2.0, 1.0, 3.0)])
def test_options_that_do_not_fit_are_one_clear_line(rescale: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="rescale: expected 5 factors of 4, 2, 1, 0.5, one per tap"):
        SegmentationOptions(rescale=rescale)


# --- one run -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def evaluate(root: Path, name: str = "zero_shot", **changes: Any) -> Any:
    wrapped = method(name)
    task = SegmentationTask(SegmentationOptions(**SMALL | changes))
    return task.evaluate(wrapped, SIIM, "siim", context(wrapped.backbone, root))


def test_result_has_metrics_samples_panels_and_facts(root: Path) -> None:
    result = evaluate(root)
    assert set(result.metrics) == {"dice", "dice_pooled", "iou", "dice_trivial"}
    assert result.n == 8
    for metric in result.metrics.values():
        assert metric["ci_low"] <= metric["value"] <= metric["ci_high"]
    arrays = result.predictions
    kept = Overlaps(*(arrays[key] for key in ("shared", "predicted", "actual")))
    assert result.metrics["dice"]["value"] == pytest.approx(dice_per_image(kept).mean())
    assert (kept.actual > 0).all()
    assert arrays["panel_pixels"].shape == arrays["panel_truth"].shape == arrays["panel_prediction"].shape
    rows = [list(arrays["image_id"]).index(one) for one in arrays["panel_id"]]
    assert len(rows) == 3
    np.testing.assert_array_equal(arrays["panel_truth"].sum((1, 2)), kept.actual[rows])
    np.testing.assert_array_equal(arrays["panel_prediction"].sum((1, 2)), kept.predicted[rows])
    assert result.info["images"] == {"train": 12, "val": 8, "test": 8}
    assert result.info["taps"] == [(64, 8, 8)] * 5
    assert len(result.info["history"]) == 1


def test_a_seed_gives_the_same_numbers_again(root: Path) -> None:
    first, again = evaluate(root), evaluate(root)
    assert first.metrics == again.metrics
    assert first.info == again.info
    for key, value in first.predictions.items():
        np.testing.assert_array_equal(value, again.predictions[key])


def test_the_test_part_is_opened_after_the_head_is_fixed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    for name in ("read_part", "fit_head"):
        original = getattr(tasks.dense, name)

        def watched(*args: Any, name: str = name, original: Any = original, **words: Any) -> Any:
            order.append(args[1] if name == "read_part" else name)
            return original(*args, **words)

        monkeypatch.setattr(tasks.dense, name, watched)
    evaluate(root)
    assert order == ["train", "val", "fit_head", "test"]


# --- cells: sharing and references ---------------------------------------------------------------------------


def spec(root: Path, name: str, **changes: Any) -> CellSpec:
    suite = {
        "name": "small",
        "templates": ["an image of {}."],
        "corpus": {"dataset": "phantom", "part": "mimic", "n": 32},
        "validation": {
            "task": "zeroshot", "dataset": "phantom", "part": "nih", "n": 64, "kind": "multilabel",
            "metric": "auroc", "classes": ["Edema", "Effusion"],
        },
    }  # fmt: skip
    tasks = {"segmentation": SMALL | {"untrained": True, "datasets": {"siim": SIIM}}}
    return CellSpec(
        **{
            "suite_name": "small", "suite": suite, "backbone": "tiny", "pretrained": None, "method": name,
            "options": {}, "seed": 0, "recipe": Recipe(max_steps=1, batch_size=16, lr=1e-2), "tasks": tasks,
            "data_root": root,
        } | changes
    )  # fmt: skip


def run(one: CellSpec, out: Path) -> Any:
    folder = Store(out).cell(one.folder)
    cell.run_cell(one, folder, NullReporter())
    return folder.read_json("segmentation.json")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let every evaluation give another Dice, its number, without training; return whose tower was looked at."""
    names: list[str] = []

    def counted(self: Any, wrapped: Any, *_: Any) -> DatasetResult:
        names.append(type(wrapped).__name__)
        dice = {"value": len(names) / 10, "ci_low": 0.0, "ci_high": 1.0, "n": 1}
        return DatasetResult(
            1, "segmentation", {"dice": dice}, {"image_id": np.array(["a"])}, {"title": "SIIM"}
        )

    monkeypatch.setattr(SegmentationTask, "evaluate", counted)
    return names


def dice(result: Any) -> list[float]:
    metrics = result["datasets"]["siim"]["metrics"]
    return [metrics["dice"]["value"], metrics["dice_untrained"]["value"]]


def test_untouched_towers_share_one_result(root: Path, tmp_path: Path, calls: list[str]) -> None:
    first, second = run(spec(root, "zero_shot"), tmp_path), run(spec(root, "taskres"), tmp_path)
    assert calls == ["ZeroShot", "Method"]  # the untouched tower, and the untrained one
    assert dice(first) == [0.1, 0.2]
    assert first["datasets"] == second["datasets"]
    assert first["shared"] == second["shared"] == "frozen image tower"
    adapted = run(spec(root, "clip_lora"), tmp_path)
    assert calls[2:] == ["ClipLoRA"]
    assert "shared" not in adapted
    assert dice(adapted) == [0.3, 0.2]
    assert dice(run(spec(root, "zero_shot", seed=1), tmp_path)) == [
        0.4,
        0.5,
    ]  # another seed trains other heads


def test_a_damaged_shared_result_is_made_again(root: Path, tmp_path: Path) -> None:
    one = spec(root, "zero_shot", tasks={"segmentation": SMALL | {"datasets": {"siim": SIIM}}})
    first = run(one, tmp_path)
    (path,) = (tmp_path / "shared").glob("*/result.json")
    path.write_text("{")
    Store(tmp_path).cell(one.folder).remove("segmentation.json")
    assert run(one, tmp_path) == first


def test_an_untrained_tower_keeps_no_weight_and_the_text_tower_keeps_all() -> None:
    backbone, before = load_backbone("tiny"), load_backbone("tiny")
    forget_image_tower(backbone)
    names = {key: backbone.tower_of(key) for key, _ in backbone.model.named_parameters()}
    old = dict(before.model.named_parameters())
    for key, value in backbone.model.named_parameters():
        changed = not torch.equal(value, old[key])
        assert changed == (names[key] == "image"), key
    assert tower_digest(backbone) != tower_digest(before)
    again = load_backbone("tiny")
    forget_image_tower(again)
    assert tower_digest(again) == tower_digest(backbone)


# --- the suite -----------------------------------------------------------------------------------------------


def test_the_embedded_suite_has_the_task_and_its_parts() -> None:
    config = load_config({"methods": ["zero_shot"], "tasks": ["segmentation"]})
    options = dict(config.task_options["segmentation"])
    entries = options.pop("datasets")
    assert dataclasses.asdict(SegmentationOptions(**options))["rescale"] == [4.0, 2.0, 2.0, 1.0, 0.5]
    seeds = [entry.get("seed", 0) for entry in data_entries(config.suite) if entry.get("part") == "siim"]
    assert seeds == [1, 2, 4]
    assert TASKS.get("segmentation") is SegmentationTask
    assert set(entries) == {"siim"}


def test_keys_below_a_part_are_checked() -> None:
    wrong = [
        "tasks.segmentation.datasets.siim.dataset=phantom",
        "tasks.segmentation.datasets.siim.train.sed=3",
    ]
    with pytest.raises(ConfigError, match=r"segmentation.datasets.siim.train.sed: unknown data key 'sed'"):
        load_config({"methods": ["zero_shot"], "tasks": ["segmentation"]}, wrong)
