from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn import metrics as oracle

from benchmark.metrics import bootstrap, classification


def _data(kind: str, count: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Similarities with ties, targets and patient ids of one kind of dataset."""
    rng = np.random.default_rng(seed)
    classes = {"binary": 2, "multiclass": 4, "multilabel": 3}[kind]
    patients = np.array([f"p{number}" for number in rng.integers(0, count // 2, count)])
    sim = np.round(rng.normal(0, 0.3, (count, classes)), 1)
    if kind == "multilabel":
        return sim, rng.integers(0, 2, (count, classes)), patients
    return sim, rng.integers(0, classes, count), patients


def report(
    kind: str, sim: np.ndarray, scale: float, targets: np.ndarray, clusters: Any = None, **how: int
) -> dict[str, Any]:
    """Values and intervals of one made-up dataset."""
    built = classification.zero_shot_metrics(kind, sim, scale, targets)  # type: ignore[arg-type]
    return bootstrap.metrics_report(built, len(targets), clusters, **how)


@pytest.mark.parametrize("kind", ["multiclass", "binary", "multilabel"])
def test_weighted_metrics_agree_with_sklearn_in_a_loop_over_the_same_resamples(kind: str) -> None:
    sim, targets, patients = _data(kind)
    counts = bootstrap.resample_counts(bootstrap.cluster_codes(patients), resamples=25, seed=4)
    built = classification.zero_shot_metrics(kind, sim, 10.0, targets)  # type: ignore[arg-type]
    ranked = {"auroc": sim, "auroc_minmax": classification.minmax_rescaled(sim)}
    if kind != "multilabel":
        ranked = dict.fromkeys(("auroc", "auroc_flat"), classification.log_odds(10.0 * sim))
    for name, metric in built.items():
        fast = bootstrap.bootstrap_values(metric, counts)
        rows = [np.repeat(np.arange(len(sim)), counts[:, column]) for column in range(25)]
        scores = ranked.get(name, sim)
        loop = [_in_sklearn(kind, name, scores[r], targets[r], targets) for r in rows]
        np.testing.assert_allclose(fast, loop, rtol=0, atol=1e-12, err_msg=name)


def _in_sklearn(kind, name, scores, targets, all_targets):  # type: ignore[no-untyped-def]
    answers = scores.argmax(axis=1)
    if name == "acc":
        return oracle.accuracy_score(targets, answers)
    if name == "majority_acc":
        return np.mean(targets == np.bincount(all_targets).argmax())
    if name == "balanced_acc":
        return oracle.recall_score(targets, answers, labels=np.unique(targets), average="macro")
    truth = targets if kind == "multilabel" else np.eye(scores.shape[1])[targets]
    if name == "auroc_flat":
        return oracle.roc_auc_score(truth.ravel(), scores.ravel())
    columns = [1] if kind == "binary" else np.flatnonzero(truth.any(axis=0) & ~truth.all(axis=0))
    return np.mean([oracle.roc_auc_score(truth[:, c], scores[:, c]) for c in columns])


def test_resamples_draw_whole_clusters_as_many_as_there_are() -> None:
    codes = bootstrap.cluster_codes(["a", "b", "a", "c", "b", "a"])
    counts = bootstrap.resample_counts(codes, resamples=50, seed=0)
    np.testing.assert_array_equal(counts[0], counts[2])
    np.testing.assert_array_equal(counts[0], counts[5])
    np.testing.assert_array_equal(counts[1], counts[4])
    assert (counts[[0, 1, 3]].sum(axis=0) == 3).all()


def test_samples_without_a_patient_id_stand_for_themselves() -> None:
    codes = bootstrap.cluster_codes(["a", None, "a", float("nan"), ""])
    assert codes[0] == codes[2]
    assert len(np.unique(codes)) == 4
    assert codes.max() == 3


def test_intervals_are_fixed_by_the_seed() -> None:
    sim, targets, patients = _data("multiclass")
    one, same, other = (
        report("multiclass", sim, 10.0, targets, patients, resamples=100, seed=seed) for seed in (1, 1, 2)
    )
    assert one == same
    assert one["acc"]["value"] == other["acc"]["value"]
    assert one["auroc"]["ci_low"] != other["auroc"]["ci_low"]


def test_the_size_of_blocks_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    sim, targets, patients = _data("binary")
    whole = report("binary", sim, 10.0, targets, patients, resamples=50)
    monkeypatch.setattr(bootstrap, "_BLOCK_ELEMENTS", 7 * len(sim))
    assert report("binary", sim, 10.0, targets, patients, resamples=50) == whole


def test_copies_of_a_sample_do_not_narrow_the_clustered_interval() -> None:
    sim, targets, _ = _data("binary", count=80)
    patients = np.arange(80)
    single = report("binary", sim, 10.0, targets, patients, seed=0)
    copied = [np.repeat(array, 5, axis=0) for array in (sim, targets, patients)]
    clustered = report("binary", copied[0], 10.0, copied[1], copied[2], seed=0)
    independent = report("binary", copied[0], 10.0, copied[1], seed=0)

    def width(report: dict, name: str) -> float:  # type: ignore[type-arg]
        return float(report[name]["ci_high"] - report[name]["ci_low"])

    for name in ("acc", "auroc", "balanced_acc"):
        assert width(clustered, name) == pytest.approx(width(single, name), abs=1e-12)
        assert width(clustered, name) > 1.8 * width(independent, name)


def test_the_interval_leaves_out_as_much_on_each_side() -> None:
    formula = classification.SampleMean(np.random.default_rng(0).random(60))
    values = bootstrap.bootstrap_values(
        formula, bootstrap.resample_counts(np.arange(60), resamples=400, seed=3)
    )
    found = bootstrap.metrics_report({"m": formula}, 60, resamples=400, seed=3)["m"]
    assert (found["ci_low"], found["ci_high"]) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_undefined_metrics_are_none_not_nan() -> None:
    found = report("binary", np.zeros((4, 2)), 1.0, np.zeros(4, dtype=int), resamples=20)
    assert found["auroc"] == {"value": None, "ci_low": None, "ci_high": None, "n": 4}
    assert found["acc"] == {"value": 1.0, "ci_low": 1.0, "ci_high": 1.0, "n": 4}


def test_a_resample_without_positives_is_left_out_of_the_interval() -> None:
    sim = np.stack([np.zeros(6), np.linspace(-1, 1, 6)], axis=1)
    found = report("binary", sim, 1.0, np.array([0, 0, 0, 0, 1, 0]), resamples=200)
    assert found["auroc"]["value"] == 4 / 5
    assert 0 <= found["auroc"]["ci_low"] <= found["auroc"]["ci_high"] <= 1  # type: ignore[operator]


def test_cluster_ids_must_match_the_samples() -> None:
    with pytest.raises(ValueError, match="each of 2 samples, got 1"):
        report("binary", np.zeros((2, 2)), 1.0, np.array([0, 1]), ["a"])


def test_majority_interval_of_balanced_classes_lies_around_its_value() -> None:
    y = np.repeat(np.arange(5), 200)
    found = report("multiclass", np.zeros((1000, 5)), 1.0, y, resamples=200)
    low, high = found["majority_acc"]["ci_low"], found["majority_acc"]["ci_high"]
    assert low < 0.2 < high  # type: ignore[operator]
