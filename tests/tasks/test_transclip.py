"""TransCLIP: the algorithm's invariants, a worked small case, and the task on top of methods."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional

from benchmark.config.load import build_options
from benchmark.errors import ConfigError
from benchmark.registry import TASKS
from tasks.transclip import TransClipOptions, TransClipTask, assign, image_features, neighbour_graph
from tasks.zeroshot import ZeroShotOptions, ZeroShotTask
from tests.small import context, images, method

RSNA = {
    "dataset": "phantom",
    "part": "rsna",
    "n": 24,
    "kind": "binary",
    "classes": ["No Finding", "Pneumonia"],
    "positive": "Pneumonia",
}


def clusters(count: int = 120, classes: int = 4, width: int = 16, noise: float = 0.25, seed: int = 0):
    """Return features around class directions, their classes, and log y from blurred text directions."""
    generator = torch.Generator().manual_seed(seed)
    centres = functional.normalize(
        torch.randn(classes, width, generator=generator, dtype=torch.float64), dim=1
    )
    labels = torch.arange(count) % classes
    noisy = centres[labels] + noise * torch.randn(count, width, generator=generator, dtype=torch.float64)
    features = functional.normalize(noisy, dim=1)
    text = centres + 0.3 * torch.randn(classes, width, generator=generator, dtype=torch.float64)
    log_y = (8 * features @ functional.normalize(text, dim=1).T).log_softmax(dim=1)
    return features, labels, log_y


def plain(features: Tensor, y: Tensor) -> Tensor:
    """The algorithm in its plain form: dense matrices, powers and products, no logarithms."""
    count, width = features.shape
    cosines = features @ features.T
    w = torch.zeros(count, count, dtype=torch.float64)
    for i in range(count):
        nearest = [j for j in cosines[i].argsort(descending=True).tolist() if j != i][:3]
        w[i, nearest] = cosines[i, nearest].clamp_min(0)
    z = y.clone()
    means = []
    for k in range(y.shape[1]):
        best = z[:, k].argsort(descending=True)[:8]
        means.append((z[best, k, None] * features[best]).sum(0) / 8)
    mu = functional.normalize(torch.stack(means), dim=1)
    sigma = torch.full((width,), 1 / width, dtype=torch.float64)
    for step in range(11):
        g = -0.5 * ((features[:, None] - mu[None]) ** 2 / sigma).sum(-1)
        for _ in range(5):
            z = y * torch.exp(g / 50 + (w + w.T) @ z / (2 * 3))
            z = z / z.sum(1, keepdim=True)
        if step == 10:
            return z
        mu = functional.normalize((z.T @ features) / z.sum(0)[:, None], dim=1)
        sigma = (z[..., None] * (features[:, None] - mu[None]) ** 2).sum((0, 1)) / z.sum()
    raise AssertionError


def test_log_form_equals_the_plain_form() -> None:
    features, _, log_y = clusters()
    torch.testing.assert_close(assign(features, log_y).exp(), plain(features, log_y.exp()), atol=1e-9, rtol=0)


def test_rows_are_probabilities_and_inputs_stay() -> None:
    features, _, log_y = clusters()
    before = features.clone(), log_y.clone()
    z = assign(features, log_y).exp()
    torch.testing.assert_close(z.sum(dim=1), torch.ones(len(z), dtype=torch.float64))
    assert torch.equal(features, before[0])
    assert torch.equal(log_y, before[1])


def test_order_of_images_and_of_classes_does_not_matter() -> None:
    features, _, log_y = clusters()
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(3))
    classes = torch.tensor([2, 0, 3, 1])
    log_z = assign(features, log_y)
    torch.testing.assert_close(assign(features[order], log_y[order]), log_z[order], atol=1e-6, rtol=0)
    torch.testing.assert_close(assign(features, log_y[:, classes]), log_z[:, classes], atol=1e-6, rtol=0)


def test_a_huge_text_weight_gives_the_answers_of_the_text() -> None:
    features, _, log_y = clusters()
    log_z = assign(features, log_y, text_weight=1e4)
    assert torch.equal(log_z.argmax(dim=1), log_y.argmax(dim=1))
    assert torch.isfinite(log_z).all()


def test_without_graph_and_likelihood_nothing_changes() -> None:
    features, _, log_y = clusters()
    torch.testing.assert_close(assign(features, log_y, likelihood_weight=0, neighbours=0), log_y)


def without_class_3() -> tuple[Tensor, Tensor]:
    features, labels, log_y = clusters()
    return features[labels != 3], log_y[labels != 3]


def six_times(count: int) -> tuple[Tensor, Tensor]:
    features, _, log_y = clusters(count=count)
    return features.repeat(6, 1), log_y.repeat(6, 1)


@pytest.mark.parametrize(
    "made",
    [*(clusters(count=count)[::2] for count in (1, 2, 3)), without_class_3(), six_times(4)],
    ids=["one image", "two", "three", "a class that no image has", "copies of images"],
)
def test_sets_at_the_limits_stay_finite(made: tuple[Tensor, Tensor]) -> None:
    log_z = assign(*made)
    assert log_z.shape == made[1].shape
    assert torch.isfinite(log_z).all()


def test_graph_by_hand() -> None:
    angles = torch.tensor([0.0, 0.1, 0.3, 3.0], dtype=torch.float64)
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    w = torch.zeros(4, 4, dtype=torch.float64)
    w[0, 1] = w[1, 0] = np.cos(0.1)
    w[2, 1] = np.cos(0.2)
    w[3, 2] = max(np.cos(2.7), 0.0)  # the nearest one points away: weight 0
    torch.testing.assert_close(neighbour_graph(features, 1).to_dense(), (w + w.T) / 2)


def test_graph_in_blocks_equals_the_graph_at_once(monkeypatch) -> None:
    features, _, _ = clusters(count=50)
    whole = neighbour_graph(features).to_dense()
    monkeypatch.setattr("tasks.transclip._GRAPH_ROWS", 7)
    torch.testing.assert_close(neighbour_graph(features).to_dense(), whole)


@pytest.mark.parametrize("name", ["zero_shot", "cocoop", "ace_lora"])
def test_task_on_top_of_methods(tmp_path: Path, name: str) -> None:
    wrapped = method(name).eval()
    around = context(wrapped.backbone, tmp_path)
    result = TransClipTask(TransClipOptions(bootstrap=20, scale="model")).evaluate(
        wrapped, RSNA, "rsna", around
    )
    plain_result = ZeroShotTask(ZeroShotOptions(bootstrap=20)).evaluate(wrapped, RSNA, "rsna", around)
    assert set(result.metrics) == set(plain_result.metrics)
    assert result.info["transductive"] is True
    assert result.info["text_scale"] == pytest.approx(plain_result.info["logit_scale"])
    log_z, target = result.predictions["similarity"], result.predictions["target"]
    np.testing.assert_allclose(np.exp(log_z).sum(axis=1), 1, atol=1e-5)
    assert result.metrics["acc"]["value"] == pytest.approx((log_z.argmax(1) == target).mean())
    odds = log_z[:, 1] - log_z[:, 0]
    assert result.metrics["auroc"]["value"] == pytest.approx(roc_auc_score(target, odds), abs=1e-3)
    before = plain_result.predictions["similarity"].argmax(1)
    assert result.info["class_shares"]["before"] == pytest.approx(np.bincount(before, minlength=2) / 24)
    assert sum(result.info["class_shares"]["after"]) == pytest.approx(1)


def test_features_are_the_adapted_ones_and_need_no_batches(tmp_path: Path) -> None:
    wrapped, data = method("clip_adapter").eval(), images(count=9)
    found = [
        image_features(wrapped, data, context(wrapped.backbone, tmp_path, batch_size=size), "t")
        for size in (2, 64)
    ]
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(found[0].norm(dim=1), torch.ones(9, dtype=torch.float64))
    with torch.no_grad():
        direct = wrapped.encode_image(wrapped.backbone.input_spec.to_input(data.pixels)).double()
    torch.testing.assert_close(found[0], direct, atol=1e-5, rtol=0)


def test_several_labels_per_image_are_refused(tmp_path: Path) -> None:
    wrapped = method("zero_shot")
    entry = RSNA | {"part": "nih", "kind": "multilabel", "classes": ["Edema", "Hernia"]}
    with pytest.raises(ConfigError, match="assigns one class to each"):
        TransClipTask().evaluate(wrapped, entry, "nih", context(wrapped.backbone, tmp_path))


def test_options() -> None:
    assert build_options(TransClipOptions, {"scale": 100}).scale == "100"
    with pytest.raises(ConfigError, match="scale"):
        build_options(TransClipOptions, {"scale": "85"})


def test_it_is_no_part_of_all_tasks() -> None:
    assert "transclip" in TASKS.names()
    assert "transclip" not in TASKS.names(extras=False)
