from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import softmax
from sklearn import metrics as oracle

from benchmark.errors import CellError
from benchmark.metrics import classification

_few = settings(max_examples=30, deadline=None)


@st.composite
def _labelled(draw: st.DrawFn, num_classes: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Scores [N, C] on a coarse grid (many ties) and labels [N]."""
    classes = num_classes or draw(st.integers(2, 5))
    count = draw(st.integers(2, 40))
    grid = st.integers(0, 6).map(lambda value: value / 8)
    scores = draw(hnp.arrays(np.float64, (count, classes), elements=grid))
    return scores, draw(hnp.arrays(np.int64, count, elements=st.integers(0, classes - 1)))


def value(
    kind: str, scores: np.ndarray, y: np.ndarray, name: str, scale: float = 1.0, final: bool = True
) -> float:
    """One metric; of scores as they are unless said otherwise."""
    built = classification.zero_shot_metrics(kind, scores, scale, y, final=final)  # type: ignore[arg-type]
    return classification.plain_value(built[name], len(y))


@_few
@given(_labelled())
def test_accuracies_agree_with_sklearn(data: tuple[np.ndarray, np.ndarray]) -> None:
    scores, y = data
    predicted = scores.argmax(axis=1)
    assert value("multiclass", scores, y, "acc") == pytest.approx(oracle.accuracy_score(y, predicted))
    # sklearn's balanced accuracy warns about predicted classes that are absent; this is the same number.
    recall = oracle.recall_score(y, predicted, labels=np.unique(y), average="macro")
    assert value("multiclass", scores, y, "balanced_acc") == pytest.approx(recall)
    assert value("multiclass", scores, y, "majority_acc") == pytest.approx(np.bincount(y).max() / len(y))


@_few
@given(_labelled())
def test_areas_with_ties_agree_with_sklearn(data: tuple[np.ndarray, np.ndarray]) -> None:
    scores, y = data
    present = np.unique(y)
    assume(len(present) > 1)
    areas = [oracle.roc_auc_score(y == label, scores[:, label]) for label in present]
    assert value("multiclass", scores, y, "auroc") == pytest.approx(np.mean(areas), abs=1e-12)
    flat = oracle.roc_auc_score(np.eye(scores.shape[1])[y].ravel(), scores.ravel())
    assert value("multiclass", scores, y, "auroc_flat") == pytest.approx(flat, abs=1e-12)
    if scores.shape[1] == 2:
        assert value("binary", scores, y, "auroc") == pytest.approx(areas[1], abs=1e-12)


@_few
@given(_labelled(), st.integers(0, 2**32 - 1))
def test_multilabel_auroc_agrees_with_sklearn(data: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    scores, _ = data
    targets = np.random.default_rng(seed).integers(0, 2, scores.shape)
    columns = [c for c in range(scores.shape[1]) if 0 < targets[:, c].sum() < len(targets)]
    assume(columns)
    expected = np.mean([oracle.roc_auc_score(targets[:, c], scores[:, c]) for c in columns])
    assert value("multilabel", scores, targets, "auroc") == pytest.approx(expected, abs=1e-12)
    assert classification.scored_classes(targets).sum() == len(columns)


def test_constant_scores_give_one_half() -> None:
    y = np.array([0, 1, 2, 1, 0])
    constant, targets = np.full((5, 3), 0.2), np.eye(3, dtype=int)[y]
    assert value("multiclass", constant, y, "auroc") == value("multiclass", constant, y, "auroc_flat") == 0.5
    for name in ("auroc", "auroc_minmax"):
        assert value("multilabel", constant, targets, name) == 0.5


def test_a_single_class_leaves_auroc_undefined_and_nothing_raises() -> None:
    scores, y = np.array([[0.1, 0.9], [0.3, 0.7]]), np.array([1, 1])
    assert np.isnan(value("binary", scores, y, "auroc"))
    assert np.isnan(value("multiclass", scores, y, "auroc"))


def test_classes_without_positives_or_negatives_or_with_too_few_are_left_out() -> None:
    targets = np.array([[0, 1, 1, 1], [0, 1, 0, 1], [0, 1, 0, 0]])
    sim = np.array([[0.5, 0.1, 0.9, 0.2], [0.1, 0.2, 0.3, 0.4], [0.3, 0.3, 0.1, 0.3]])
    assert classification.scored_classes(targets).tolist() == [False, False, True, True]
    assert value("multilabel", sim, targets, "auroc") == (1.0 + 0.5) / 2
    assert classification.scored_classes(targets, min_positives=2).tolist() == [False, False, False, True]


def test_what_is_stored_of_a_formula_gives_it_back() -> None:
    rng = np.random.default_rng(0)
    y, weights = rng.integers(0, 3, 30), rng.integers(0, 3, (30, 4)).astype(float)
    built = classification.zero_shot_metrics("multiclass", rng.normal(size=(30, 3)), 2.0, y)
    holes = classification.SampleMean(np.where(rng.random(30) < 0.3, np.nan, rng.random(30)), y)
    formulas = {**built, "holes": holes, "other": classification.macro_mean([holes])}
    again = classification.formulas_of({"score": y, "truth_image": y, **classification.stored_form(formulas)})
    assert list(again) == [name for name in formulas if name != "other"]
    for name, formula in again.items():
        np.testing.assert_array_equal(formula(weights), formulas[name](weights))
    means = [np.nanmean(holes.values[y == label]) for label in range(3)]
    assert classification.plain_value(holes, 30) == pytest.approx(np.mean(means))


def test_scale_can_change_multiclass_auroc() -> None:
    rng = np.random.default_rng(0)
    sim, y = rng.uniform(-1, 1, (60, 5)), rng.integers(0, 5, 60)
    one, hundred = (
        classification.plain_value(classification.zero_shot_metrics("multiclass", sim, scale, y)["auroc"], 60)
        for scale in (1.0, 100.0)
    )
    assert one != hundred
    assert one == pytest.approx(value("multiclass", softmax(sim, axis=1), y, "auroc"), abs=1e-12)


def test_minmax_differs_from_plain_on_a_crafted_example() -> None:
    sim = np.array([[0.9, 0.8], [0.2, 0.1], [0.3, 0.5], [0.1, 0.6]])
    targets = np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
    # Within each image the true class is on top: rescaled to 1 and 0, though 0.2 < 0.3 across images.
    assert value("multilabel", sim, targets, "auroc") == ((2 + 1) / 4 + 2 / 4) / 2
    assert value("multilabel", sim, targets, "auroc_minmax") == 1.0


def test_minmax_rescaling_spans_zero_to_one_and_survives_equal_logits() -> None:
    rescaled = classification.minmax_rescaled(np.array([[0.1, 0.4, 0.2], [0.3, 0.3, 0.3]]))
    assert rescaled[0].min() == 0.0
    assert rescaled[0].max() == 1.0
    assert rescaled[0, 2] == pytest.approx((np.exp(0.2) - np.exp(0.1)) / (np.exp(0.4) - np.exp(0.1)))
    assert rescaled[1].tolist() == [0.5, 0.5, 0.5]


def test_log_odds_keep_apart_what_softmax_ties() -> None:
    sim, y = np.array([[-0.5, 0.5], [-0.6, 0.6], [-0.4, 0.7]]), np.array([0, 1, 1])
    assert value("binary", softmax(100 * sim, axis=1), y, "auroc") == 0.5
    assert value("binary", sim, y, "auroc", 100.0, final=False) == 1.0


def test_log_odds_are_those_of_the_softmax() -> None:
    logits = np.random.default_rng(0).normal(size=(7, 4))
    prob = softmax(logits, axis=1)
    np.testing.assert_allclose(classification.log_odds(logits), np.log(prob / (1 - prob)), rtol=1e-9)


def test_metric_names_by_kind() -> None:
    sim, y = np.array([[0.1, 0.2], [0.3, 0.1], [0.2, 0.2]]), np.array([0, 1, 1])
    single = ["acc", "balanced_acc", "majority_acc", "auroc", "auroc_flat"]
    assert list(classification.zero_shot_metrics("binary", sim, 1.0, y)) == single
    assert list(classification.zero_shot_metrics("multiclass", sim, 1.0, y)) == single
    assert list(classification.zero_shot_metrics("multilabel", sim, 1.0, np.eye(2)[y])) == [
        "auroc",
        "auroc_minmax",
    ]


def test_a_diverged_model_is_named_as_such() -> None:
    sim = np.array([[0.1, np.nan], [0.2, 0.3], [np.inf, 0.0]])
    with pytest.raises(CellError, match="2 of 3 samples"):
        classification.zero_shot_metrics("binary", sim, 1.0, np.array([0, 1, 0]))


@pytest.mark.parametrize(
    ("kind", "scores", "targets", "message"),
    [
        ("multiclass", np.zeros((2, 3)), np.array([0, 3]), r"0\.\.2"),
        ("multiclass", np.zeros((2, 3)), np.array([0]), r"labels \[N\]"),
        ("multiclass", np.zeros((0, 3)), np.zeros(0), "N > 0"),
        ("multilabel", np.zeros((2, 2)), np.array([[0, -1], [1, 0]]), r"0\.\.1"),
        ("multilabel", np.zeros((2, 2)), np.zeros((2, 3)), r"labels \[N, C\]"),
        ("binary", np.zeros((2, 3)), np.zeros(2), "two classes"),
        ("multiclass", np.zeros((2, 1)), np.zeros(2), "at least two classes"),
    ],
)
def test_wrong_shapes_and_labels_are_refused(
    kind: classification.Kind, scores: np.ndarray, targets: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        classification.zero_shot_metrics(kind, scores, 1.0, targets)
