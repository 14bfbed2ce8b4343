"""The zero-shot task: prompts, similarities, metrics, validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from benchmark.errors import ConfigError
from benchmark.registry import TASKS
from tasks.base import fill
from tasks.zeroshot import ZeroShotOptions, ZeroShotTask, class_tokens, similarities
from tests.small import context, images, method

RSNA = {
    "dataset": "phantom",
    "part": "rsna",
    "n": 40,
    "kind": "binary",
    "classes": ["No Finding", "Pneumonia"],
    "positive": "Pneumonia",
}


def test_every_task_that_is_listed_can_be_loaded() -> None:
    assert all(TASKS.get(name).title for name in TASKS.names())


def test_fill() -> None:
    assert fill(["a {}.", "{} b"], "x") == ["a x.", "x b"]
    for wrong in ("no place", "{} and {}"):
        with pytest.raises(ValueError, match="exactly one"):
            fill([wrong], "x")


def test_similarities_by_hand(tmp_path: Path) -> None:
    wrapped, data = method("zero_shot"), images()
    model, spec = wrapped.backbone.model, wrapped.backbone.input_spec
    with torch.no_grad():
        image = model.encode_image(spec.to_input(data.pixels), normalize=True)
        rows = []
        for name in data.classes:
            prompts = [f"a chest X-ray image of {name}.", f"Findings suggesting {name}."]
            text = model.encode_text(wrapped.backbone.tokenize(prompts), normalize=True)
            rows.append(functional.normalize(text.mean(0), dim=0))
    ours = similarities(wrapped, data, context(wrapped.backbone, tmp_path), "test")
    np.testing.assert_allclose(ours, (image @ torch.stack(rows).T).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["cocoop", "ace_lora", "taskres"])
def test_batch_size_does_not_matter(tmp_path: Path, name: str) -> None:
    wrapped, data = method(name).eval(), images(count=9)
    sizes = [
        similarities(wrapped, data, context(wrapped.backbone, tmp_path, batch_size=s), "t")
        for s in (1, 4, 64)
    ]
    np.testing.assert_allclose(sizes[1], sizes[0], atol=1e-5)
    np.testing.assert_allclose(sizes[2], sizes[0], atol=1e-5)


def test_prompts_are_padded_as_the_method_asks(tmp_path: Path) -> None:
    for name, full in (("clip_lora", False), ("ace_lora", True)):
        wrapped = method(name)
        tokens = class_tokens(wrapped, ("edema", "pneumothorax"), context(wrapped.backbone, tmp_path))
        assert tokens.shape[:2] == (2, 2)
        assert (tokens.shape[2] == wrapped.backbone.text.context_length) is full


def test_result_has_metrics_intervals_and_samples(tmp_path: Path) -> None:
    wrapped = method("zero_shot")
    task = ZeroShotTask(ZeroShotOptions(bootstrap=50))
    result = task.evaluate(wrapped, RSNA, "rsna", context(wrapped.backbone, tmp_path))
    assert set(result.metrics) == {"acc", "balanced_acc", "majority_acc", "auroc", "auroc_flat"}
    for metric in result.metrics.values():
        assert metric["n"] == 40
        assert metric["ci_low"] <= metric["value"] <= metric["ci_high"]
    assert result.metrics["majority_acc"]["value"] == 0.5
    predictions = result.predictions
    assert predictions["similarity"].shape == (40, 2)
    assert len(set(predictions["image_id"])) == 40
    accuracy = (predictions["similarity"].argmax(1) == predictions["target"]).mean()
    assert result.metrics["acc"]["value"] == pytest.approx(accuracy)
    assert result.info["classes"] == ["No Finding", "Pneumonia"]


def test_the_positive_class_is_found_wherever_it_is_named(tmp_path: Path) -> None:
    wrapped, task = method("zero_shot"), ZeroShotTask(ZeroShotOptions(bootstrap=5))
    around = context(wrapped.backbone, tmp_path)
    first = task.evaluate(wrapped, RSNA, "rsna", around)
    turned = task.evaluate(wrapped, RSNA | {"classes": ["Pneumonia", "No Finding"]}, "rsna", around)
    assert turned.metrics == first.metrics


def test_validation_scores_classes_with_enough_positives(tmp_path: Path) -> None:
    wrapped = method("zero_shot")
    entry = {
        "dataset": "phantom",
        "part": "nih",
        "n": 64,
        "kind": "multilabel",
        "classes": ["Edema", "Hernia"],
    }
    around = context(wrapped.backbone, tmp_path)
    score = ZeroShotTask().validator(entry | {"min_positives": 1}, around)(wrapped)["auroc"]
    assert 0 < score < 1
    with pytest.raises(ConfigError, match="no class has 60 positives"):
        ZeroShotTask().validator(entry | {"min_positives": 60}, around)
    cut = context(wrapped.backbone, tmp_path, limit=60)
    assert 0 < ZeroShotTask().validator(entry | {"min_positives": 60}, cut)(wrapped)["auroc"] < 1
    with pytest.raises(ConfigError, match="expected multiclass or multilabel"):
        ZeroShotTask().validator(entry | {"kind": "binary"}, around)


def test_multiclass_validation_is_scored_as_a_test_set_is(tmp_path: Path) -> None:
    wrapped = method("zero_shot")
    entry = {
        "dataset": "phantom",
        "part": "nih",
        "n": 160,
        "kind": "multiclass",
        "exclusive": True,
        "classes": ["No Finding", "Edema", "Pneumothorax"],
    }
    around = context(wrapped.backbone, tmp_path)
    task = ZeroShotTask(ZeroShotOptions(bootstrap=5))
    score = task.validator(entry, around)(wrapped)["auroc"]
    assert score == pytest.approx(task.evaluate(wrapped, entry, "nih", around).metrics["auroc"]["value"])
