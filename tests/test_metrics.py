from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import softmax
from sklearn import metrics as oracle

from benchmark import metrics
from benchmark.errors import CellError

_few = settings(max_examples=30, deadline=None)


@st.composite
def _labelled(draw: st.DrawFn, num_classes: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Scores [N, C] on a coarse grid (many ties) and labels [N]."""
    classes = num_classes or draw(st.integers(2, 5))
    count = draw(st.integers(2, 40))
    grid = st.integers(0, 6).map(lambda value: value / 8)
    scores = draw(hnp.arrays(np.float64, (count, classes), elements=grid))
    return scores, draw(hnp.arrays(np.int64, count, elements=st.integers(0, classes - 1)))


@_few
@given(_labelled())
def test_accuracies_agree_with_sklearn(data: tuple[np.ndarray, np.ndarray]) -> None:
    scores, y = data
    predicted = scores.argmax(axis=1)
    assert metrics.accuracy(scores, y) == pytest.approx(oracle.accuracy_score(y, predicted))
    # sklearn's balanced accuracy warns about predicted classes that are absent; this is the same number.
    recall = oracle.recall_score(y, predicted, labels=np.unique(y), average="macro")
    assert metrics.balanced_accuracy(scores, y) == pytest.approx(recall)
    assert metrics.majority_accuracy(y) == pytest.approx(np.bincount(y).max() / len(y))


@_few
@given(_labelled())
def test_reported_accuracies_are_those_of_the_labels(data: tuple[np.ndarray, np.ndarray]) -> None:
    scores, y = data
    found = metrics.zero_shot_metrics("multiclass", scores, 10.0, y)
    for name, expected in (
        ("acc", metrics.accuracy(scores, y)),
        ("majority_acc", metrics.majority_accuracy(y)),
    ):
        assert metrics.plain_value(found[name], len(y)) == pytest.approx(expected)
    assert metrics.plain_value(found["balanced_acc"], len(y)) == pytest.approx(
        metrics.balanced_accuracy(scores, y)
    )


@_few
@given(_labelled(num_classes=2))
def test_binary_auroc_with_ties_agrees_with_sklearn(data: tuple[np.ndarray, np.ndarray]) -> None:
    scores, y = data
    assume(len(np.unique(y)) == 2)
    expected = oracle.roc_auc_score(y, scores[:, 1])
    assert metrics.auroc_binary(scores[:, 1], y) == pytest.approx(expected, abs=1e-12)


@_few
@given(_labelled())
def test_one_vs_rest_auroc_agrees_with_sklearn(data: tuple[np.ndarray, np.ndarray]) -> None:
    scores, y = data
    present = np.unique(y)
    assume(len(present) > 1)
    expected = np.mean([oracle.roc_auc_score(y == label, scores[:, label]) for label in present])
    assert metrics.auroc_ovr(scores, y) == pytest.approx(expected, abs=1e-12)


@_few
@given(_labelled())
def test_flattened_auroc_agrees_with_sklearn_on_flattened_arrays(data: tuple[np.ndarray, np.ndarray]) -> None:
    scores, y = data
    truth = np.eye(scores.shape[1])[y]
    expected = oracle.roc_auc_score(truth.ravel(), scores.ravel())
    assert metrics.auroc_flat(scores, y) == pytest.approx(expected, abs=1e-12)


@_few
@given(_labelled(), st.integers(0, 2**32 - 1))
def test_multilabel_auroc_agrees_with_sklearn(data: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    scores, _ = data
    targets = np.random.default_rng(seed).integers(0, 2, scores.shape)
    columns = [c for c in range(scores.shape[1]) if 0 < targets[:, c].sum() < len(targets)]
    assume(columns)
    expected = np.mean([oracle.roc_auc_score(targets[:, c], scores[:, c]) for c in columns])
    assert metrics.auroc_multilabel(scores, targets) == pytest.approx(expected, abs=1e-12)
    assert metrics.scored_classes(targets).sum() == len(columns)


def test_auroc_by_hand_with_a_tie() -> None:
    # Pairs (positive, negative): .8>.5 .8>.1 .5=.5 .5>.1 -> 3.5 of 4.
    assert metrics.auroc_binary(np.array([0.8, 0.5, 0.5, 0.1]), np.array([1, 1, 0, 0])) == 3.5 / 4


def test_constant_scores_give_one_half() -> None:
    y = np.array([0, 1, 2, 1, 0])
    constant = np.full((5, 3), 0.2)
    targets = np.eye(3, dtype=int)[y]
    assert metrics.auroc_binary(constant[:, 0], targets[:, 0]) == 0.5
    assert metrics.auroc_ovr(constant, y) == 0.5
    assert metrics.auroc_flat(constant, y) == 0.5
    assert metrics.auroc_multilabel(constant, targets) == 0.5
    assert metrics.auroc_minmax(constant, targets) == 0.5


def test_a_single_class_leaves_auroc_undefined_and_nothing_raises() -> None:
    assert np.isnan(metrics.auroc_binary(np.array([0.1, 0.2]), np.array([1, 1])))
    assert np.isnan(metrics.auroc_ovr(np.array([[0.1, 0.9], [0.3, 0.7]]), np.array([1, 1])))


def test_classes_without_positives_or_negatives_or_with_too_few_are_left_out() -> None:
    targets = np.array([[0, 1, 1, 1], [0, 1, 0, 1], [0, 1, 0, 0]])
    sim = np.array([[0.5, 0.1, 0.9, 0.2], [0.1, 0.2, 0.3, 0.4], [0.3, 0.3, 0.1, 0.3]])
    assert metrics.scored_classes(targets).tolist() == [False, False, True, True]
    assert metrics.auroc_multilabel(sim, targets) == (1.0 + 0.5) / 2
    assert metrics.scored_classes(targets, min_positives=2).tolist() == [False, False, False, True]
    assert metrics.auroc_multilabel(sim, targets, min_positives=2) == 0.5


def test_majority_and_balanced_accuracy_expose_a_constant_answer() -> None:
    scores, y = np.tile([0.9, 0.1], (10, 1)), np.array([0] * 8 + [1] * 2)
    assert metrics.accuracy(scores, y) == metrics.majority_accuracy(y) == 0.8
    assert metrics.balanced_accuracy(scores, y) == 0.5


@_few
@given(st.integers(0, 10**6), st.floats(0.01, 200.0))
def test_scale_leaves_accuracy_binary_and_flat_auroc_unchanged(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    sim, y = rng.uniform(-1, 1, (30, 2)), rng.integers(0, 2, 30)
    assume(len(np.unique(y)) == 2)
    values = [
        {name: metrics.plain_value(metric, 30) for name, metric in built.items()}
        for built in (
            metrics.zero_shot_metrics("binary", sim, 1.0, y),
            metrics.zero_shot_metrics("binary", sim, scale, y),
        )
    ]
    assert values[0] == values[1]


def test_scale_can_change_multiclass_auroc() -> None:
    rng = np.random.default_rng(0)
    sim, y = rng.uniform(-1, 1, (60, 5)), rng.integers(0, 5, 60)
    one, hundred = (
        metrics.plain_value(metrics.zero_shot_metrics("multiclass", sim, scale, y)["auroc"], 60)
        for scale in (1.0, 100.0)
    )
    assert one != hundred
    assert one == pytest.approx(metrics.auroc_ovr(softmax(sim, axis=1), y), abs=1e-12)


@_few
@given(st.integers(0, 10**6), st.floats(-0.3, 0.3))
def test_flattened_auroc_stays_within_its_bounds(seed: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, 50)
    raw = np.clip(0.5 + shift + 0.2 * (y - 0.5) + rng.normal(0, 0.2, 50), 0.0, 0.99)
    prob_positive = (np.floor(raw * 64) + 0.5) / 64  # never 0.5, and 1 - p is exact
    prob = np.stack([1 - prob_positive, prob_positive], axis=1)
    acc, flat = metrics.accuracy(prob, y), metrics.auroc_flat(prob, y)
    assert acc**2 - 1e-12 <= flat <= 2 * acc - acc**2 + 1e-12
    right, wrong = prob[np.arange(50), y], 1 - prob[np.arange(50), y]
    joined = oracle.roc_auc_score(np.repeat([1, 0], 50), np.concatenate([right, wrong]))
    assert flat == pytest.approx(joined, abs=1e-12)


def test_flattened_auroc_follows_the_threshold_where_the_plain_one_does_not() -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 400)
    logit = rng.normal(size=400) + 1.2 * y
    sims = [np.stack([np.zeros(400), (logit + shift) / 10], axis=1) for shift in (-3.0, -0.6, 2.0)]
    reports = [metrics.zero_shot_metrics("binary", sim, 10.0, y) for sim in sims]
    plain = [metrics.plain_value(report["auroc"], 400) for report in reports]
    flat = [metrics.plain_value(report["auroc_flat"], 400) for report in reports]
    assert plain == pytest.approx([plain[0]] * 3, abs=1e-4)
    assert max(flat) - min(flat) > 0.1


def test_minmax_differs_from_plain_on_a_crafted_example() -> None:
    sim = np.array([[0.9, 0.8], [0.2, 0.1], [0.3, 0.5], [0.1, 0.6]])
    targets = np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
    # Within each image the true class is on top: rescaled to 1 and 0, though 0.2 < 0.3 across images.
    assert metrics.auroc_multilabel(sim, targets) == ((2 + 1) / 4 + 2 / 4) / 2
    assert metrics.auroc_minmax(sim, targets) == 1.0


def test_minmax_rescaling_spans_zero_to_one_and_survives_equal_logits() -> None:
    rescaled = metrics.minmax_rescaled(np.array([[0.1, 0.4, 0.2], [0.3, 0.3, 0.3]]))
    assert rescaled[0].min() == 0.0
    assert rescaled[0].max() == 1.0
    assert rescaled[0, 2] == pytest.approx((np.exp(0.2) - np.exp(0.1)) / (np.exp(0.4) - np.exp(0.1)))
    assert rescaled[1].tolist() == [0.5, 0.5, 0.5]


def test_log_odds_keep_apart_what_softmax_ties() -> None:
    sim, y = np.array([[-0.5, 0.5], [-0.6, 0.6], [-0.4, 0.7]]), np.array([0, 1, 1])
    assert metrics.auroc_binary(softmax(100 * sim, axis=1)[:, 1], y) == 0.5
    assert metrics.plain_value(metrics.zero_shot_metrics("binary", sim, 100.0, y)["auroc"], 3) == 1.0


def test_log_odds_are_those_of_the_softmax() -> None:
    logits = np.random.default_rng(0).normal(size=(7, 4))
    prob = softmax(logits, axis=1)
    np.testing.assert_allclose(metrics.log_odds(logits), np.log(prob / (1 - prob)), rtol=1e-9)


def test_positive_column_can_be_the_first() -> None:
    sim, y = np.array([[0.9, 0.1], [0.8, 0.3], [0.1, 0.4]]), np.array([0, 0, 1])
    for positive in (0, 1):
        built = metrics.zero_shot_metrics("binary", sim, 10.0, y, positive=positive)
        assert metrics.plain_value(built["auroc"], 3) == 1.0


def test_metric_names_by_kind() -> None:
    sim, y = np.array([[0.1, 0.2], [0.3, 0.1], [0.2, 0.2]]), np.array([0, 1, 1])
    single = ["acc", "balanced_acc", "majority_acc", "auroc", "auroc_flat"]
    assert list(metrics.zero_shot_metrics("binary", sim, 1.0, y)) == single
    assert list(metrics.zero_shot_metrics("multiclass", sim, 1.0, y)) == single
    assert list(metrics.zero_shot_metrics("multilabel", sim, 1.0, np.eye(2)[y])) == ["auroc", "auroc_minmax"]


def test_a_diverged_model_is_named_as_such() -> None:
    sim = np.array([[0.1, np.nan], [0.2, 0.3], [np.inf, 0.0]])
    with pytest.raises(CellError, match="2 of 3 samples"):
        metrics.zero_shot_metrics("binary", sim, 1.0, np.array([0, 1, 0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.accuracy(np.zeros((2, 3)), np.array([0, 3])), r"0\.\.2"),
        (lambda: metrics.accuracy(np.zeros((2, 3)), np.array([0])), r"labels \[N\]"),
        (lambda: metrics.accuracy(np.zeros((0, 3)), np.zeros(0)), "N > 0"),
        (lambda: metrics.auroc_binary(np.zeros(2), np.array([0, 2])), "0 or 1"),
        (lambda: metrics.auroc_binary(np.zeros((2, 2)), np.zeros(2)), "one shape"),
        (lambda: metrics.auroc_multilabel(np.zeros((2, 2)), np.array([[0, -1], [1, 0]])), "0 or 1"),
        (lambda: metrics.auroc_multilabel(np.zeros((2, 2)), np.zeros((2, 3))), "one shape"),
        (lambda: metrics.zero_shot_metrics("binary", np.zeros((2, 3)), 1.0, np.zeros(2)), r"\[N, 2\]"),
        (lambda: metrics.zero_shot_metrics("multiclass", np.zeros((2, 1)), 1.0, np.zeros(2)), "two classes"),
    ],
)
def test_wrong_shapes_and_labels_are_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
