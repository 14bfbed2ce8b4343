"""Findings by pairs of prompts: metrics against scikit-learn and hand-worked cases, thresholds, the task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score

from benchmark.config.load import build_options, load_config
from benchmark.errors import ConfigError
from benchmark.metrics.classification import MeanPrecision, formulas_of, plain_value, stored_form
from benchmark.metrics.findings import (
    answer_metrics,
    constant_metrics,
    corner,
    thresholds,
)
from benchmark.registry import METHODS
from methods.base import Method
from tasks.base import DatasetResult, TaskContext
from tasks.findings import FindingsOptions, FindingsTask
from tests.small import context, method

FINDINGS = ("Atelectasis", "Cardiomegaly", "Effusion", "Nodule", "Mass", "Pneumothorax", "Hernia")
ENTRY: dict[str, Any] = {
    "dataset": "phantom",
    "part": "nih",
    "title": "Here",
    "classes": list(FINDINGS[:3]),
    "val": {"seed": 1, "n": 24},
    "test": {"n": 40},
}


def drawn(seed: int = 0, count: int = 60, columns: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.random((count, columns)) < [0.1, 0.3, 0.5, 0.7][:columns]
    return np.round(
        rng.random((count, columns)) * 0.6 + 0.3 * truth, 2
    ), truth  # two digits: equal scores occur


def test_metrics_equal_scikit_learn() -> None:
    scores, truth = drawn()
    answers = scores > 0.5
    found = {name: plain_value(one, len(truth)) for name, one in answer_metrics(answers, truth).items()}
    columns = list(zip(answers.T, truth.T, strict=True))
    assert found["acc"] == pytest.approx((answers == truth).mean())
    assert found["balanced_acc"] == pytest.approx(
        np.mean([balanced_accuracy_score(t, a) for a, t in columns])
    )
    assert found["f1"] == pytest.approx(np.mean([f1_score(t, a) for a, t in columns]))
    assert found["f1_weighted"] == pytest.approx(
        np.mean([f1_score(t, a, average="weighted") for a, t in columns])
    )
    precision = plain_value(MeanPrecision(scores, truth), len(truth))
    assert precision == pytest.approx(
        np.mean([average_precision_score(t, s) for s, t in zip(scores.T, truth.T, strict=True)])
    )


def test_weights_count_samples_as_often_as_they_say() -> None:
    scores, truth = drawn()
    weights = np.random.default_rng(1).integers(0, 4, (len(truth), 1)).astype(float)
    again = np.repeat(np.arange(len(truth)), weights[:, 0].astype(int))
    whole = {**answer_metrics(scores > 0.5, truth), "ap": MeanPrecision(scores, truth)}
    repeated = {
        **answer_metrics(scores[again] > 0.5, truth[again]),
        "ap": MeanPrecision(scores[again], truth[again]),
    }
    for name, metric in whole.items():
        assert metric(weights)[0] == pytest.approx(plain_value(repeated[name], len(again))), name


def test_average_precision_comes_back_from_its_stored_form() -> None:
    scores, truth = drawn()
    one = formulas_of(stored_form({"ap": MeanPrecision(scores, truth)}))["ap"]
    assert plain_value(one, len(truth)) == plain_value(MeanPrecision(scores, truth), len(truth))


def test_constant_answers_of_the_published_labels() -> None:
    """CT-RATE's validation part: always-negative is right in 80.7 %, always-positive has a macro F1 of 31.0."""
    per_mille = [103, 285, 107, 74, 252, 137, 260, 197, 235, 448, 390, 273, 124, 83, 117, 191, 109, 82]
    truth = np.stack([np.arange(1000) < share for share in per_mille], axis=1)
    found = {name: plain_value(one, 1000) for name, one in constant_metrics(truth).items()}
    assert found["acc_all_negative"] == pytest.approx(0.807, abs=2e-3)
    assert found["f1_all_positive"] == pytest.approx(0.310, abs=2e-3)


def test_the_corner_by_hand() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.9])
    truth = np.array([False, False, True, False, True, True])
    # at 0.5: 2 of 3 found, none false (1/9); at 0.25: all found, 1 of 3 false (1/9): the first candidate counts
    assert corner(scores, truth, np.array([0.0, 0.25, 0.5, 0.95])) == 0.25
    assert corner(scores, truth, np.array([0.0, 0.5, 0.95])) == 0.5
    assert thresholds(scores[:, None], np.zeros((6, 1), dtype=bool)).tolist() == [0.0]


def test_thresholds_separate_what_can_be_separated() -> None:
    scores = np.array([[0.2], [0.4], [0.45], [0.7]])
    truth = np.array([[False], [False], [True], [True]])
    assert thresholds(scores, truth)[0] == pytest.approx(0.425)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def built(name: str = "zero_shot", **options: Any) -> Method:
    return method(name, **options).eval()


def surroundings(wrapped: Method, root: Path, **changes: Any) -> TaskContext:
    made = vars(context(wrapped.backbone, root)) | {"templates": ("{} is present.",)} | changes
    return TaskContext(**made)


def evaluate(wrapped: Method, root: Path, entry: dict[str, Any] = ENTRY, **options: Any) -> DatasetResult:
    task = FindingsTask(FindingsOptions(**{"bootstrap": 20, "min_positives": 1, **options}))
    return task.evaluate(wrapped, entry, "here", surroundings(wrapped, root))


def test_the_task_on_drawn_films(root: Path) -> None:
    wrapped = built()
    result = evaluate(wrapped, root)
    stored, truth = result.predictions["difference"], result.predictions["target"]
    assert stored.shape == (40, 3)
    areas = [roc_auc_score(truth[:, k], stored[:, k]) for k in range(3)]
    assert result.metrics["auroc"]["value"] == pytest.approx(np.mean(areas), abs=1e-6)
    assert result.metrics["acc_argmax"]["value"] == pytest.approx(((stored > 0) == truth).mean(), abs=1e-6)
    assert result.info["thresholds_from"] == 24
    assert set(result.info["thresholds"]) == set(FINDINGS[:3])
    # the pair score is the sigmoid form of the softmax over both prompts
    scale = result.info["logit_scale"]
    chosen = np.array(list(result.info["thresholds"].values()))
    answers = 1 / (1 + np.exp(-scale * stored.astype(float))) >= chosen
    assert result.metrics["acc"]["value"] == pytest.approx((answers == truth).mean(), abs=1 / 40)


def test_a_scale_changes_probabilities_and_no_ranks(root: Path) -> None:
    wrapped = built()
    before = evaluate(wrapped, root)
    wrapped.logit_scale.set(3.0)
    after = evaluate(wrapped, root)
    for name in ("auroc", "ap", "acc_argmax", "acc"):
        assert after.metrics[name] == before.metrics[name], name


def test_patients_of_the_test_part_choose_no_thresholds(root: Path) -> None:
    same = {**ENTRY, "val": {"n": 40}}
    with pytest.raises(ConfigError, match="no patient of the part 'val' is left"):
        evaluate(built(), root, same)


def test_rare_findings_are_named_and_not_counted(root: Path) -> None:
    result = evaluate(built(), root, {**ENTRY, "classes": list(FINDINGS)}, min_positives=5)
    left = result.info["unscored_classes"]
    positives = dict(zip(FINDINGS, (result.predictions["target"] == 1).sum(axis=0), strict=True))
    assert set(left) == {name for name, count in positives.items() if count < 5}
    assert left
    assert "5 are needed" in result.info["data_notes"][0]


def test_a_short_set_counts_its_most_frequent_findings(root: Path) -> None:
    result = evaluate(built(), root, {**ENTRY, "classes": list(FINDINGS)}, min_positives=1000)
    most = (result.predictions["target"] == 1).sum(axis=0).max()
    assert f"{most // 2} are needed" in result.info["data_notes"][0]
    assert result.metrics["auroc"]["value"] is not None


def test_without_a_part_for_thresholds_the_other_columns_stand(root: Path) -> None:
    entry = {"dataset": "phantom", "part": "nih", "n": 40, "classes": list(FINDINGS[:3])}
    result = evaluate(built(), root, entry)
    assert "acc" not in result.metrics
    assert {"auroc", "ap", "acc_corner_on_test", "acc_argmax"} <= set(result.metrics)


def test_a_method_that_chooses_one_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="chooses one class of a list"):
        FindingsTask().check(METHODS.get("linear_probe"), "tiny", ("global",))


@pytest.mark.parametrize("suite", ["ct_rate", "phantom_ct"])
def test_templates_that_deny_are_read_as_sentences(suite: str) -> None:
    values = load_config({"suite": suite, "methods": "zero_shot"}).task_options["findings"]
    assert build_options(FindingsOptions, {"absent": values["absent"]}).absent == ["{} is not present."]


def test_wrong_requests_are_said_in_one_line(root: Path) -> None:
    wrapped = built()
    task = FindingsTask(FindingsOptions(absent=("{} is not present.", "no {}.")))
    with pytest.raises(ConfigError, match=r"findings\.absent: 2 templates deny a finding and 1"):
        task.evaluate(wrapped, ENTRY, "here", surroundings(wrapped, root))
    with pytest.raises(ConfigError, match="absent"):
        FindingsOptions(absent=("nothing",))
    problems = list(FindingsTask.check_entry({**ENTRY, "kind": "binary"}))
    assert problems == [("kind", "every finding is asked for by itself: expected multilabel, got 'binary'")]
