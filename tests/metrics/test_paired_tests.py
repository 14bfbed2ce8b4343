"""Paired tests against enumeration, scipy, direct formulas and published examples."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import recall_score, roc_auc_score

from benchmark.metrics.bootstrap import bootstrap_values, cluster_codes, metrics_report, resample_counts
from benchmark.metrics.classification import MeanArea, SampleMean, plain_value
from benchmark.metrics.paired_tests import (
    FLIPS,
    PairedTest,
    Placements,
    average_ranks,
    delong_test,
    flip_p_values,
    friedman,
    holm,
    indistinct,
    nemenyi_critical_difference,
    permutation_tests,
    resampled_test,
)

# Demsar (JMLR 7, 2006), Table 6: AUC of four decision-tree learners on 14 datasets.
DEMSAR = np.array(
    [
        [0.763, 0.768, 0.771, 0.798],
        [0.599, 0.591, 0.590, 0.569],
        [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657],
        [0.882, 0.888, 0.886, 0.898],
        [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685],
        [0.583, 0.583, 0.563, 0.625],
        [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000],
        [0.940, 0.962, 0.965, 0.962],
        [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.97501, 0.975],  # both printed as 0.975, and ranked 2 and 3
        [0.957, 0.978, 0.946, 0.970],
    ]
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def permutation(a, b, patients=None, *, groups=None, counts=None) -> PairedTest:
    """Test one pair of methods."""
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    codes = np.arange(len(differences)) if patients is None else cluster_codes(patients)
    return permutation_tests(differences[:, None], codes, groups=groups, counts=counts)[0]


def placements(scores, y, *, pooled: bool = False) -> Placements:
    """Placements of one area, or of one per column."""
    scores, y = np.asarray(scores, dtype=float), np.asarray(y)
    columns = (one.reshape(len(one), -1) for one in (scores, y == 1))
    return Placements.of(MeanArea(*columns, pooled))


def interval(formula, patients, resamples: int = 1000) -> tuple[float, float]:
    found = metrics_report({"m": formula}, len(patients), patients, resamples=resamples)["m"]
    return found["ci_low"], found["ci_high"]


# --- permutation --------------------------------------------------------------------------------------------


def enumerated(sums: np.ndarray) -> float:
    signs = itertools.product((1, -1), repeat=len(sums))
    return float(np.mean([abs(np.dot(sign, sums)) >= abs(sums.sum()) - 1e-12 for sign in signs]))


def test_few_samples_by_hand() -> None:
    # differences 1, 1, 1, 0: of the 8 flips of three samples, two are as far from zero
    test = permutation([1, 1, 1, 0], [0, 0, 0, 0])
    assert test.p_value == 2 / 8
    assert test.difference == 0.75
    assert (test.test, test.n, test.clusters) == ("permutation", 4, 4)


def test_few_samples_are_enumerated() -> None:
    a, b = rng().random((2, 9))
    assert permutation(a, b).p_value == pytest.approx(enumerated(a - b))
    oracle = stats.permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    )
    assert permutation(a, b).p_value == pytest.approx(oracle.pvalue)


def test_many_samples_are_close_to_enumeration() -> None:
    sums = rng(1).normal(0.4, 1, size=14)
    assert 2 ** len(sums) > FLIPS
    assert flip_p_values(sums[:, None])[0] == pytest.approx(enumerated(sums), abs=0.012)


def test_p_is_never_zero_and_no_difference_gives_one() -> None:
    certain = permutation(np.ones(200), np.zeros(200))
    assert certain.p_value == 1 / (FLIPS + 1)
    assert (certain.ci_low, certain.ci_high) == (1, 1)
    same = permutation(np.ones(200), np.ones(200))
    assert (same.p_value, same.difference) == (1, 0)


def test_whole_patients_are_flipped() -> None:
    differences = np.array([1.0, 1, 1, 1, -1, 1])
    patients = ["a", "a", "b", "b", "c", "c"]
    test = permutation(differences, np.zeros(6), patients)
    assert test.p_value == pytest.approx(enumerated(np.array([2.0, 2, 0])))
    assert test.clusters == 3
    assert test.p_value > permutation(differences, np.zeros(6)).p_value


def test_groups_give_balanced_accuracy() -> None:
    labels = rng(4).choice(3, size=60, p=[0.6, 0.3, 0.1])
    scores = rng(5).random((2, 60, 3))
    right = (scores.argmax(axis=2) == labels).astype(float)
    test = permutation(right[0], right[1], groups=labels)
    recalls = [recall_score(labels, one.argmax(axis=1), average="macro") for one in scores]
    expected = recalls[0] - recalls[1]
    assert test.difference == pytest.approx(expected)
    assert test.ci_low < test.difference < test.ci_high


def test_pairs_at_once_equal_pairs_alone() -> None:
    differences, codes = rng(7).normal(0.1, 1, (40, 3)), cluster_codes(rng(7).integers(0, 30, 40))
    together = permutation_tests(differences, codes)
    for pair, test in enumerate(together):
        alone = permutation(differences[:, pair], np.zeros(40), codes)
        assert test.p_value == alone.p_value
        assert (test.difference, test.ci_low) == pytest.approx((alone.difference, alone.ci_low))


def test_false_alarms_are_as_rare_as_promised() -> None:
    patient = rng(8).normal(size=(60, 400))  # no difference on average, the same within a patient
    p_values = flip_p_values(patient * rng(9).integers(1, 5, (60, 1)))
    assert 0.025 < np.mean(p_values < 0.05) < 0.085


# --- DeLong -------------------------------------------------------------------------------------------------


def scores_of(count: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = rng(seed)
    y = generator.integers(0, 2, count)
    a = np.round(y + generator.normal(0, 1.0, count), 1)  # rounded: ties
    return a, np.round(0.5 * a + 0.3 * y + generator.normal(0, 1.0, count), 1), y


def kernel(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    above, below = scores[y == 1][:, None], scores[y == 0][None, :]
    return (above > below) + 0.5 * (above == below)


def test_delong_equals_the_pairwise_formula() -> None:
    a, b, y = scores_of()
    wins = np.stack([kernel(a, y), kernel(b, y)])
    areas = wins.mean(axis=(1, 2))
    positive, negative = np.cov(wins.mean(axis=2)), np.cov(wins.mean(axis=1))
    covariance = positive / wins.shape[1] + negative / wins.shape[2]
    spread = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    test = delong_test(placements(a, y), placements(b, y))
    assert test.difference == pytest.approx(areas[0] - areas[1])
    assert test.difference == pytest.approx(roc_auc_score(y, a) - roc_auc_score(y, b))
    assert test.p_value == pytest.approx(2 * stats.norm.sf(abs(areas[0] - areas[1]) / spread))
    assert test.ci_high - test.ci_low == pytest.approx(2 * 1.959964 * spread)


def test_one_image_per_patient_gives_plain_delong() -> None:
    a, b, y = scores_of()
    placed = placements(a, y), placements(b, y)
    assert delong_test(*placed, [f"patient {i}" for i in range(len(y))]) == delong_test(*placed)


def test_patients_with_several_images_follow_obuchowski() -> None:
    a, b, y = scores_of(count=60, seed=1)
    patients = rng(2).integers(0, 25, 60)
    ids = np.unique(patients)

    def parts(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        wins = kernel(scores, y)
        area, owner = wins.mean(), (patients[y == 1], patients[y == 0])
        found = []
        for axis, who in ((1, owner[0]), (0, owner[1])):
            placed = wins.mean(axis=axis)
            found.append(np.array([(placed[who == i] - area).sum() for i in ids]))
        return found[0], found[1]

    (x10, x01), (y10, y01) = parts(a), parts(b)
    u10, u01 = x10 - y10, x01 - y01
    num_positive, num_negative = (y == 1).sum(), (y == 0).sum()
    i10, i01, i = len(set(patients[y == 1])), len(set(patients[y == 0])), len(ids)
    s10 = i10 / ((i10 - 1) * num_positive) * (u10**2).sum()
    s01 = i01 / ((i01 - 1) * num_negative) * (u01**2).sum()
    s11 = i / (i - 1) * (u10 * u01).sum()
    variance = s10 / num_positive + s01 / num_negative + 2 * s11 / (num_positive * num_negative)
    test = delong_test(placements(a, y), placements(b, y), patients)
    assert test.p_value == pytest.approx(2 * stats.norm.sf(abs(test.difference) / np.sqrt(variance)))
    assert test.clusters == len(ids)


def test_copies_of_images_do_not_sharpen_a_clustered_test() -> None:
    a, b, y = scores_of()
    patients = np.arange(len(y))
    single = delong_test(placements(a, y), placements(b, y), patients)
    a, b, y, patients = (np.repeat(values, 3) for values in (a, b, y, patients))
    placed = placements(a, y), placements(b, y)
    assert delong_test(*placed, patients).p_value == pytest.approx(single.p_value)
    assert delong_test(*placed).p_value < single.p_value


def test_mean_over_classes_agrees_with_the_bootstrap() -> None:
    y = rng(3).integers(0, 4, 300)
    truth = np.eye(4)[y]
    patients = rng(4).integers(0, 200, 300)
    a = truth + rng(5).normal(0, 1.2, (300, 4))
    b = 0.4 * a + rng(6).normal(0, 0.8, (300, 4))
    test = delong_test(placements(a, truth), placements(b, truth), patients)
    assert test.difference == pytest.approx(roc_auc_score(truth, a) - roc_auc_score(truth, b))
    areas = [MeanArea(one, truth == 1) for one in (a, b)]
    low, high = interval(lambda weights: areas[0](weights) - areas[1](weights), patients, 2000)
    assert test.ci_low == pytest.approx(low, abs=0.012)
    assert test.ci_high == pytest.approx(high, abs=0.012)


def test_flat_area_is_that_of_all_pairs() -> None:
    truth = np.eye(3)[rng(7).integers(0, 3, 40)]
    a, b = truth + rng(8).normal(0, 1, (2, 40, 3))
    test = delong_test(placements(a, truth, pooled=True), placements(b, truth, pooled=True))
    ravelled = [placements(scores.ravel(), truth.ravel()) for scores in (a, b)]
    rows = np.repeat(np.arange(40), 3)
    expected = delong_test(*ravelled, rows)
    assert (test.difference, test.p_value) == pytest.approx((expected.difference, expected.p_value))


def test_seeds_give_the_mean_of_their_areas() -> None:
    a, b, y = scores_of()
    mean = Placements.mean([placements(a, y), placements(b, y)])
    assert mean.areas[0] == pytest.approx((roc_auc_score(y, a) + roc_auc_score(y, b)) / 2)
    half = delong_test(mean, placements(b, y))
    whole = delong_test(placements(a, y), placements(b, y))
    assert half.difference == pytest.approx(whole.difference / 2)
    assert half.p_value == pytest.approx(whole.p_value)


def test_delong_at_its_limits() -> None:
    y = np.array([0, 0, 1, 1])
    placed = placements([0, 1, 2, 3], y)
    assert delong_test(placed, placed).p_value == 1
    lonely = placements([0.0, 1, 2], [0, 0, 1])
    assert np.isnan(delong_test(lonely, lonely).p_value)
    with pytest.raises(ValueError, match="same truth"):
        delong_test(placed, placements([0, 1, 2, 3], 1 - y))
    with pytest.raises(ValueError, match="one shape"):
        Placements.of(MeanArea(np.zeros((2, 1)), np.zeros((1, 2), bool)))


# --- bootstrap ----------------------------------------------------------------------------------------------


def bootstrap(a, b, counts) -> PairedTest:
    values = [np.append(plain_value(one, len(counts)), bootstrap_values(one, counts)) for one in (a, b)]
    return resampled_test(*values, len(counts), len(counts))


def test_bootstrap_of_a_mean_agrees_with_the_permutation() -> None:
    a = rng(9).random(300)
    b = a - 0.02 + rng(10).normal(0, 0.15, 300)
    counts = resample_counts(np.arange(300), resamples=1000, seed=0)
    test = bootstrap(SampleMean(a), SampleMean(b), counts)
    other = permutation(a, b)
    assert test.difference == pytest.approx(other.difference)
    assert (test.ci_low, test.ci_high) == pytest.approx((other.ci_low, other.ci_high))
    assert test.p_value == pytest.approx(other.p_value, abs=0.03)
    assert 0 < test.p_value < 1


def test_bootstrap_at_its_limits() -> None:
    counts = resample_counts(np.arange(20), resamples=200, seed=0)
    one, zero = SampleMean(np.ones(20)), SampleMean(np.zeros(20))
    assert bootstrap(one, zero, counts).p_value == pytest.approx(2 / 201)
    assert bootstrap(one, one, counts).p_value == 1
    undefined = bootstrap(lambda w: np.full(w.shape[1], np.nan), one, counts)
    assert np.isnan(undefined.p_value)


# --- several methods and datasets ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.03, np.nan], [0.03, np.nan]),
        ([], []),
    ],
)
def test_holm_worked_examples(p_values, expected) -> None:
    np.testing.assert_allclose(holm(p_values), expected)


def test_demsars_example() -> None:
    np.testing.assert_allclose(average_ranks(DEMSAR), [3.143, 2.000, 2.893, 1.964], atol=5e-4)
    assert nemenyi_critical_difference(4, 14) == pytest.approx(1.25, abs=5e-3)
    assert friedman(DEMSAR) == pytest.approx(stats.friedmanchisquare(*DEMSAR.T).pvalue)
    assert friedman(DEMSAR) < 0.05


@pytest.mark.parametrize(
    ("methods", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (8, 3.031), (10, 3.164)]
)
def test_demsars_table_of_critical_values(methods: int, q: float) -> None:
    # printed to three digits, from tables that are rounded themselves
    assert nemenyi_critical_difference(methods, 1) / np.sqrt(methods * (methods + 1) / 6) == pytest.approx(
        q, abs=1.5e-3
    )


def test_friedman_at_its_limits() -> None:
    assert np.isnan(friedman(DEMSAR[:, :2]))
    assert friedman(np.ones((5, 3))) == 1


def test_indistinct_runs() -> None:
    assert indistinct([1.0, 1.5, 2.4, 4.0], 1.0) == [(0, 1), (1, 2)]
    assert indistinct([1.0, 1.2, 1.4], 1.0) == [(0, 2)]
    assert indistinct([1.0, 3.0], 1.0) == []
