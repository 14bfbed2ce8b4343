"""Overlap metrics against hand-worked masks and, where it is installed, torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest

from benchmark.metrics.classification import plain_value
from benchmark.metrics.segmentation import (
    Overlaps,
    best_fixed_mask,
    dice_per_image,
    iou_per_image,
    segmentation_metrics,
)

SIZE = (4, 5)


def mask(*pixels):
    out = np.zeros(SIZE, bool)
    for pixel in pixels:
        out[pixel] = True
    return out


def values(predicted, actual, weights=None):
    metrics = segmentation_metrics(Overlaps.of(predicted, actual))
    if weights is None:
        return {name: plain_value(metric, len(actual)) for name, metric in metrics.items()}
    return {name: float(metric(np.array(weights, float)[:, None])[0]) for name, metric in metrics.items()}


@pytest.mark.parametrize(
    ("predicted", "actual", "dice", "iou"),
    [
        (mask((0, 0), (1, 1)), mask((0, 0), (1, 1)), 1.0, 1.0),
        (mask((0, 0)), mask((1, 1)), 0.0, 0.0),
        (mask(), mask((1, 1)), 0.0, 0.0),
        (mask((1, 1)), mask(), 0.0, 0.0),
        (mask(), mask(), 1.0, 1.0),
        (mask((0, 0), (0, 1), (0, 2)), mask((0, 2)), 0.5, 1 / 3),
    ],
)
def test_dice_and_iou_of_one_image(predicted, actual, dice, iou):
    overlaps = Overlaps.of(predicted[None], actual[None])
    assert dice_per_image(overlaps)[0] == pytest.approx(dice)
    assert iou_per_image(overlaps)[0] == pytest.approx(iou)


def test_pooled_dice_weighs_images_by_their_pixels():
    actual = np.stack([mask((0, 0)), mask((0, 0), (0, 1), (0, 2), (0, 3))])
    predicted = np.stack([mask((0, 0)), mask((0, 0))])
    found = values(predicted, actual)
    assert found["dice"] == pytest.approx((1 + 2 / 5) / 2)
    assert found["dice_pooled"] == pytest.approx(2 * 2 / (2 + 5))
    assert found["iou"] == pytest.approx((1 + 1 / 4) / 2)


def test_weights_count_an_image_several_times():
    rng = np.random.default_rng(0)
    predicted, actual = rng.random((2, 6, *SIZE)) < 0.4
    counts = np.array([0, 2, 1, 0, 3, 1])
    repeated = np.repeat(np.arange(6), counts)
    assert values(predicted, actual, counts) == pytest.approx(values(predicted[repeated], actual[repeated]))


def test_masks_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        Overlaps.of(np.zeros((2, 4, 4), bool), np.zeros((2, 4, 5), bool))


def test_the_fixed_mask_is_cut_where_it_fits_validation_best():
    often, once = mask((0, 0), (0, 1)), mask((0, 0), (0, 1), (3, 3))
    train = np.stack([often, often, often, once])
    assert (best_fixed_mask(train, np.stack([often, often])) == often).all()
    assert (best_fixed_mask(train, np.stack([once, once])) == once).all()


def test_dice_agrees_with_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics.functional.segmentation")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    for _ in range(20):
        predicted, actual = rng.random((2, 7, 8, 9)) < rng.random()
        actual[0, 0, 0] = predicted[0, 0, 0] = True  # not all empty
        overlaps = Overlaps.of(predicted, actual)
        pair = [torch.from_numpy(one.astype(np.int64)) for one in (predicted, actual)]
        per_image = torchmetrics.dice_score(
            *pair, num_classes=2, include_background=False, average="none", input_format="index"
        )
        some = overlaps.predicted + overlaps.actual > 0  # torchmetrics gives nan where both are empty
        np.testing.assert_allclose(dice_per_image(overlaps)[some], per_image.ravel().numpy()[some], atol=1e-6)
        iou = torchmetrics.mean_iou(
            *pair, num_classes=2, include_background=False, per_class=True, input_format="index"
        )
        np.testing.assert_allclose(iou_per_image(overlaps)[some], iou.ravel().numpy()[some], atol=1e-6)
