from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmark.config.load import load_config
from benchmark.errors import ConfigError
from benchmark.metrics.classification import plain_value
from benchmark.metrics.detection import RECALLS, Boxes, detection_metrics
from methods.base import Method
from tasks.base import DatasetResult
from tasks.detection import DetectionOptions, DetectionTask, best_fixed_box
from tasks.heads.taps import TapBatches, Taps
from tests import small

ENTRY: dict[str, Any] = {
    "dataset": "phantom",
    "part": "rsna",
    "title": "RSNA",
    "train": {"n": 64, "seed": 1},
    "val": {"n": 32, "seed": 2},
    "test": {"n": 48},
}
FEW = {"width": 16, "epochs": 2, "lr": 5e-3, "bootstrap": 50}


def _result(
    folder: Path, method: Method | None = None, entry: Mapping[str, Any] = ENTRY, **options: Any
) -> DatasetResult:
    method = small.method("zero_shot") if method is None else method
    context = small.context(method.backbone, folder)
    return DetectionTask(DetectionOptions(**FEW | options)).evaluate(method, entry, "rsna", context)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DatasetResult:
    return _result(tmp_path_factory.mktemp("data"))


def test_the_result_has_all_metrics_with_intervals_and_says_how_it_came_about(result: DatasetResult) -> None:
    singles = [f"ap{iou}" for iou in (40, 45, 50, 55, 60, 65, 70, 75)]
    others = ["map", "map_mgca_skip", "kaggle_rsna", "map_low_conf", "map_trivial"]
    assert sorted(result.metrics) == sorted([*singles, *others])
    assert {metric["n"] for metric in result.metrics.values()} == {result.n}
    assert result.metrics["map_low_conf"]["ci_low"] is not None
    assert result.info["images"] == {"train": 32, "val": 16, "test": 24}  # positives only
    assert result.info["shared_patients"] == {"train/val": 0, "train/test": 0, "val/test": 0}
    assert result.info["taps"] == [(64, 8, 8)] * 3
    json.dumps(result.info)


def test_stored_boxes_give_the_reported_numbers_again(result: DatasetResult) -> None:
    stored = result.predictions
    found = Boxes(stored["found"], stored["found_image"], stored["found_score"])
    truth = Boxes(stored["truth"], stored["truth_image"])
    assert result.info["conf"] == 0.5
    for name, metric in detection_metrics(found, truth, result.n, 0.5).items():
        assert plain_value(metric, result.n) == pytest.approx(result.metrics[name]["value"], abs=1e-6)
    mean = stored["pr_precision"].mean()
    assert mean == pytest.approx(result.metrics["map_low_conf"]["value"], abs=1e-6)
    assert stored["pr_precision"].shape == (8, len(RECALLS))


def test_shown_images_are_chosen_by_their_ids(result: DatasetResult) -> None:
    stored, ids = result.predictions, sorted(result.predictions["image_id"])
    assert stored["panel_id"].tolist() == [ids[at] for at in np.linspace(0, 23, 6).round().astype(int)]
    assert stored["panel_pixels"].shape == (6, 64, 64)
    for number, name in enumerate(stored["panel_id"]):
        row = stored["image_id"].tolist().index(name)
        own = stored["truth"][stored["truth_image"] == row]
        np.testing.assert_array_equal(stored["panel_truth"][stored["panel_truth_image"] == number], own)


def test_the_same_seed_gives_the_same_result_and_leaves_the_method_as_it_was(
    result: DatasetResult, tmp_path: Path
) -> None:
    method = small.method("clip_lora")
    before = {name: value.clone() for name, value in method.state_dict().items()}
    torch.manual_seed(5)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    again = _result(tmp_path, method)  # LoRA starts as the identity
    assert torch.equal(torch.rand(1), drawn)
    assert not method.training
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert all(parameter.grad is None for parameter in method.parameters())
    value = result.metrics["map_low_conf"]["value"]
    assert again.metrics["map_low_conf"]["value"] == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize(("anchors", "assign"), [("kmeans", "mgca"), ("coco", "yolov3")])
def test_other_anchors_and_assignment_run(tmp_path: Path, anchors: str, assign: str) -> None:
    found = _result(tmp_path, anchors=anchors, assign=assign, epochs=1)
    fitted = np.array(found.info["anchors"]).reshape(9, 2).prod(axis=1)
    assert (np.diff(fitted) <= 0).all() == (anchors == "kmeans")
    assert found.metrics["map"]["value"] is not None


def test_boxes_follow_the_flips_of_their_images(tmp_path: Path) -> None:
    options = DetectionOptions(**FEW, hflip=1.0)
    method = small.method("zero_shot")
    context, task = small.context(method.backbone, tmp_path), DetectionTask(options)
    taps = Taps(method, options.taps, context)
    images = task.part(ENTRY, "train", taps, context)
    detector = task.new_head(taps, images, context.device)
    detector.head.eval()
    flipped = [
        detector.loss(batch, images)
        for batch in TapBatches(taps, images, context, options.augment()).epoch(1, 8, 0)
    ]
    mirrored = dataclasses.replace(
        images,
        boxes=tuple(boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [64, 0, 64, 0] for boxes in images.boxes),
    )
    unflipped = dataclasses.replace(options, hflip=0.0)
    plain = TapBatches(taps, images, context, unflipped.augment())
    first = next(iter(TapBatches(taps, images, context, options.augment()).epoch(1, 8, 0)))
    same_maps = dataclasses.replace(next(iter(plain.epoch(1, 8, 0))), maps=first.maps)
    assert torch.allclose(flipped[0], detector.loss(same_maps, mirrored))


def test_a_tower_without_three_maps_is_refused() -> None:
    taps: Any = SimpleNamespace(shapes=[(3, 8, 8)] * 2, pyramid=True)
    with pytest.raises(ConfigError, match="needs 3 tapped maps; this tower gives 2"):
        DetectionTask().new_head(taps, None, torch.device("cpu"))  # type: ignore[arg-type]


def test_the_best_fixed_box_is_the_one_that_finds_most() -> None:
    usual, far = np.array([[10, 10, 20, 30.0]]), np.array([[40, 40, 50, 60.0]])
    assert best_fixed_box([usual, usual, far, np.empty((0, 4))]).tolist() == usual[0].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"taps": (3, 11)}, "3 blocks"), ({"rotation": 5.0}, "rotation"), ({"low_conf": 0.9}, "low_conf")],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DetectionOptions(**options)


def test_the_embedded_suite_tests_on_films_of_a_draw_of_its_own() -> None:
    config = load_config({"methods": ["zero_shot"], "tasks": ["detection"]})
    options = dict(config.task_options["detection"])
    (entry,) = options.pop("datasets").values()
    assert DetectionOptions(**options).conf == 0.5
    assert entry["part"] == "rsna_boxes"
    assert [entry[part]["seed"] for part in ("train", "val", "test")] == [1, 2, 4]
