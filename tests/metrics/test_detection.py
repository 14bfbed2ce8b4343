from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.metrics import detection as ap
from benchmark.metrics.classification import plain_value
from benchmark.metrics.detection import Boxes, Matches

Image = tuple[list[list[float]], list[list[float]], list[float]]  # true boxes, detections, their scores
BOX = [0, 0, 10, 10]


def _boxes(images: list[Image]) -> tuple[Boxes, Boxes, int]:
    """Detections, truth, number of images."""
    found = Boxes.of([image[1] for image in images], [image[2] for image in images])
    return found, Boxes.of([image[0] for image in images]), len(images)


def _matches(images: list[Image]) -> Matches:
    return ap.match(*_boxes(images))


def _values(images: list[Image], conf: float = 0.0) -> dict[str, float]:
    metrics = ap.detection_metrics(*_boxes(images), conf)
    return {name: plain_value(metric, len(images)) for name, metric in metrics.items()}


# --- hand-worked --------------------------------------------------------------------------------------------


def test_perfect_detections_score_one() -> None:
    values = _values([([BOX, [20, 20, 30, 40]], [[20, 20, 30, 40], BOX], [0.5, 0.9]), ([BOX], [BOX], [0.1])])
    assert set(values.values()) == {1.0}
    assert list(values) == [
        "map", "map_mgca_skip", "kaggle_rsna", "ap40", "ap45", "ap50", "ap55", "ap60", "ap65", "ap70", "ap75",
        "map_low_conf",
    ]  # fmt: skip


def test_one_hit_one_false_alarm_and_one_miss_by_hand() -> None:
    # ranked: a false alarm, then a hit: precision 1/2 up to recall 1/2, so 51 of the 101 grid points hold 1/2
    values = _values([([BOX], [[50, 50, 60, 60], BOX], [0.9, 0.8]), ([BOX], [], [])])
    assert values["ap50"] == pytest.approx(0.5 * 51 / 101)
    assert values["map_mgca_skip"] == pytest.approx(0.5)  # the second image is not looked at
    assert values["kaggle_rsna"] == pytest.approx((1 / 2 + 0) / 2)


def test_precision_never_rises_with_recall() -> None:
    # a false alarm, then two hits: precision 1/2 and 2/3; the later, better one counts for the earlier recall too
    values = _values([([BOX, [20, 20, 30, 30]], [[50, 50, 60, 60], BOX, [20, 20, 30, 30]], [0.9, 0.8, 0.7])])
    assert values["ap50"] == pytest.approx(2 / 3)


def test_an_overlap_equal_to_the_threshold_is_a_hit_at_that_threshold_alone() -> None:
    values = _values([([BOX], [[0, 0, 10, 5]], [0.9])])  # overlap exactly 1/2
    assert [values[f"ap{iou}"] for iou in (40, 45, 50, 55)] == [1, 1, 1, 0]
    assert values["map"] == pytest.approx(3 / 8)


def test_a_box_is_found_once_and_by_the_more_confident_detection() -> None:
    # the less sure detection fits better but comes second; the second box is free for it only if it overlaps
    values = _values([([BOX], [[0, 0, 10, 8], BOX], [0.9, 0.8])])
    assert values["ap75"] == 1.0
    assert values["kaggle_rsna"] == pytest.approx(1 / 2)


def test_recall_at_an_exact_hundredth_reaches_its_grid_point() -> None:
    # 0.01 * 29 and 29 / 100 differ as float32 grids do; 29 of 100 boxes reach recalls 0 .. 0.29: 30 grid points
    images: list[Image] = [
        ([BOX], [BOX] if number < 29 else [], [0.5] * (number < 29)) for number in range(100)
    ]
    assert _values(images)["ap50"] == pytest.approx(30 / 101, abs=1e-12)


def test_only_the_hundred_most_confident_detections_of_an_image_count() -> None:
    away = [[100.0 + 20 * number, 0, 110.0 + 20 * number, 10] for number in range(100)]
    found = _values([([BOX], [*away, BOX], [*[0.1] * 100, 0.9])])
    lost = _values([([BOX], [*away, BOX], [*[0.9] * 100, 0.1])])
    assert (found["map"], lost["map"]) == (1.0, 0.0)


def test_nothing_found_is_zero_and_nothing_to_find_is_undefined() -> None:
    assert _values([([BOX], [], [])])["map"] == 0
    assert np.isnan(_values([([BOX], [], [])])["map_mgca_skip"])
    empty = _values([([], [BOX], [0.5]), ([], [], [])])
    assert np.isnan(empty["map"])
    assert empty["kaggle_rsna"] == 0
    assert np.isnan(_values([([], [], [])])["kaggle_rsna"])


def test_the_curve_has_the_ap_as_its_mean() -> None:
    matches = _matches([([BOX], [[50, 50, 60, 60], BOX], [0.9, 0.8]), ([BOX], [], [])])
    curve = ap.precision_at_recalls(matches, 2)
    assert curve.tolist() == [0.5] * 51 + [0.0] * 50
    assert ap.precision_at_recalls(_matches([([BOX], [], [])]), 2).tolist() == [0.0] * 101


def test_overlaps_of_boxes() -> None:
    assert ap.box_iou([[0, 0, 2, 2]], [[1, 0, 3, 2], [2, 0, 4, 2]]).tolist() == [[1 / 3, 0.0]]
    assert ap.box_iou([[3, 3, 3, 3]], [[3, 3, 3, 3]]).tolist() == [[0.0]]


def test_scores_must_fit_their_boxes() -> None:
    with pytest.raises(ValueError, match="one score for each box"):
        Boxes.of([[BOX]], [[0.1, 0.2]])


# --- random cases -------------------------------------------------------------------------------------------

_side = st.integers(1, 12)
_box = st.tuples(st.integers(0, 12), st.integers(0, 12), _side, _side).map(
    lambda box: [float(box[0]), float(box[1]), float(box[0] + box[2]), float(box[1] + box[3])]
)


@st.composite
def _image(draw: st.DrawFn) -> Image:
    """An image with up to 4 boxes; detections are near boxes or anywhere, with few, often equal scores."""
    truth = draw(st.lists(_box, max_size=4))
    near = st.tuples(st.sampled_from(truth), st.integers(-1, 1), st.integers(0, 2)).map(
        lambda part: [part[0][0] + part[1], part[0][1], part[0][2] + part[2], part[0][3]]
    )
    boxes = draw(st.lists(st.one_of(near, _box) if truth else _box, max_size=6))
    scores = draw(st.lists(st.integers(1, 6), min_size=len(boxes), max_size=len(boxes)))
    return truth, boxes, [score / 8 for score in scores]


_images = st.lists(_image(), min_size=1, max_size=6)


def _oracle(images: list[Image], backend: str) -> tuple[float, list[float]]:
    import torch
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(
        iou_thresholds=list(ap.IOU_THRESHOLDS),
        rec_thresholds=ap.RECALLS.tolist(),
        extended_summary=True,
        backend=backend,
    )
    boxes = [[torch.tensor(table).reshape(-1, 4) for table in image[:2]] for image in images]
    labels = [[torch.zeros(len(table), dtype=torch.long) for table in pair] for pair in boxes]
    metric.update(
        [
            {"boxes": pair[1], "scores": torch.tensor(image[2]), "labels": label[1]}
            for image, pair, label in zip(images, boxes, labels, strict=True)
        ],
        [{"boxes": pair[0], "labels": label[0]} for pair, label in zip(boxes, labels, strict=True)],
    )
    result = metric.compute()
    # precision: [thresholds, recalls, classes, areas, detections]; the first area is "all", the last count 100
    return float(result["map"]), [float(row.mean()) for row in result["precision"][:, :, 0, 0, -1]]


@pytest.mark.parametrize("backend", ["pycocotools", "faster_coco_eval"])
def test_ap_agrees_with_coco(backend: str) -> None:
    pytest.importorskip("torchmetrics")
    pytest.importorskip(backend)

    @settings(max_examples=60, deadline=None)
    @given(_images)
    def agrees(images: list[Image]) -> None:
        values = _values(images)
        if not any(image[0] for image in images):
            assert np.isnan(values["map"])
            return
        mean, single = _oracle(images, backend)
        assert values["map"] == pytest.approx(mean, abs=1e-6)
        assert [values[f"ap{round(100 * iou)}"] for iou in ap.IOU_THRESHOLDS] == pytest.approx(
            single, abs=1e-6
        )
        kept = [image for image in images if image[0] and image[1]]
        if kept:
            assert values["map_mgca_skip"] == pytest.approx(_oracle(kept, backend)[0], abs=1e-6)

    agrees()


@settings(max_examples=40, deadline=None)
@given(st.data(), _images)
def test_weights_count_images_as_often_as_they_are_repeated(data: st.DataObject, images: list[Image]) -> None:
    number = iter(range(1, 1000))  # equal scores within an image would make copies of it interleave
    images = [(truth, boxes, [next(number) / 1000 for _ in boxes]) for truth, boxes, _ in images]
    weights = data.draw(st.lists(st.integers(0, 3), min_size=len(images), max_size=len(images)))
    repeated = [image for image, count in zip(images, weights, strict=True) for _ in range(count)]
    metrics = ap.detection_metrics(*_boxes(images), 0.0)
    columns = np.array([weights, [1] * len(images)], dtype=np.float64).T
    for name, expected in (_values(repeated) if repeated else {}).items():
        assert metrics[name](columns)[0] == pytest.approx(expected, abs=1e-12, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(_images)
def test_kaggle_precision_by_counting(images: list[Image]) -> None:
    matches = _matches(images)
    scores = []
    for number, (truth, boxes, _) in enumerate(images):
        if truth or boxes:
            hits = matches.hit[:, matches.image == number].sum(axis=1)
            scores.append(np.mean([hit / (len(truth) + len(boxes) - hit) for hit in hits]))
    expected = np.mean(scores) if scores else np.nan
    assert _values(images)["kaggle_rsna"] == pytest.approx(expected, abs=1e-12, nan_ok=True)
