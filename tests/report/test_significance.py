"""Tests of a table: from stored predictions to sentences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmark.backbones import load_backbone
from benchmark.metrics.bootstrap import cluster_codes
from benchmark.metrics.classification import plain_value, zero_shot_metrics
from benchmark.metrics.paired_tests import holm, permutation_tests
from benchmark.metrics.segmentation import Overlaps, segmentation_metrics
from benchmark.report.collect import make_row
from benchmark.report.model import Block, Row, Run
from benchmark.report.significance.comparisons import (
    BlockTests,
    Comparison,
    adjusted,
    block_tests,
    compare_rows,
    seed_error,
)
from benchmark.report.significance.decision import decide
from benchmark.report.significance.evidence import run_evidence
from benchmark.report.significance.wording import sentences
from benchmark.store.cells import Store
from tasks.zeroshot import ZeroShotOptions, scored
from tests import small

N = 200
PATIENTS = np.array([f"p{i // 2:03d}" for i in range(N)])
IDS = np.array([f"image-{i:03d}" for i in range(N)])
TARGET = np.random.default_rng(0).integers(0, 3, N)
NOISE = np.random.default_rng(1).normal(0, 1, (N, 3))
Make = Callable[..., Run]
ACC, AUROC = ("zeroshot", "toy", "acc"), ("zeroshot", "toy", "auroc")


def scores(skill: float, seed: int = 0) -> np.ndarray:
    """Cosines whose noise is mostly that of all methods, so that pairs differ less than their accuracies."""
    own = np.random.default_rng(100 + seed).normal(0, 0.15, (N, 3))
    return (skill * np.eye(3)[TARGET] + NOISE + own).astype(np.float32)


@pytest.fixture
def make(tmp_path):
    """Return a function that stores a run of one zero-shot dataset and reads it back as the report does."""

    def run(
        method: str,
        skill: float = 1.0,
        seed: int = 0,
        *,
        trained: int = 1000,
        order: np.ndarray | None = None,
        target: np.ndarray = TARGET,
        arrays: dict[str, Any] | None = None,
        info: dict[str, Any] | None = None,
        metrics: dict[str, float] | None = None,
    ) -> Run:
        order = np.arange(N) if order is None else order
        similarity = scores(skill, seed)
        built = zero_shot_metrics("multiclass", similarity, 2.0, target)
        values = metrics or {name: plain_value(one, N) for name, one in built.items()}
        entries = {
            name: {"value": value, "ci_low": None, "ci_high": None, "n": N} for name, value in values.items()
        }
        result = {
            "n": N,
            "kind": "multiclass",
            "metrics": entries,
            "info": {"logit_scale": 2.0, **(info or {})},
        }
        cell = Store(tmp_path).cell(f"runs/s/tiny/{method}/seed-{seed}")
        stored = {"similarity": similarity[order], "target": target[order]} if arrays is None else arrays
        cell.write_npz(
            "predictions/zeroshot-toy.npz", {"image_id": IDS[order], "patient_id": PATIENTS[order], **stored}
        )
        config = {"suite_name": "s", "backbone": "tiny", "method": method, "seed": seed}
        return Run(cell.path, config, "success", "", {"zeroshot": {"datasets": {"toy": result}}},
                   {"trainable_parameters": trained}, {}, ())  # fmt: skip

    return run


def row(method: str, *runs: Run) -> Row:
    return replace(make_row(method, runs), title=method.upper())


def block(*rows: Row, **settings: Any) -> Block:
    spec = {"tasks": {"zeroshot": {"datasets": {"toy": {"title": "Toy set"}}}}}
    return Block("s", "tiny", spec, rows, **settings)


def compared(first: Row, second: Row, metric: str = "acc") -> Comparison:
    (one,) = compare_rows(first, second, [("zeroshot", "toy", metric)], block(first, second))
    return one


def seeds(make: Make, method: str, skill: float, count: int = 3) -> Row:
    return row(method, *(make(method, skill, seed) for seed in range(count)))


@pytest.fixture
def table(make):
    return block(
        row("frozen", make("frozen", 1.0, 9, trained=0)),
        seeds(make, "better", 1.8),
        seeds(make, "alike", 1.02),
    )


def test_the_column_equals_the_tests_by_hand(table):
    tests = block_tests(table)
    right = {name: (scores(skill, seed).argmax(1) == TARGET) for name, skill, seed in
             [("base", 1.0, 9)] + [(f"b{s}", 1.8, s) for s in range(3)]}  # fmt: skip
    mean = np.mean([right[f"b{s}"] for s in range(3)], axis=0)
    (expected,) = permutation_tests((mean - right["base"])[:, None], cluster_codes(PATIENTS))
    found = tests.against("better", ACC)
    assert found.test.p_value == expected.p_value
    assert found.test.difference == pytest.approx(expected.difference)
    assert (found.test.n, found.test.clusters) == (200, 100)
    family = [tests.against_baseline[(cell, ACC)] for cell in ("better", "alike")]
    raw = [one.test.p_value for one in family if one.test]
    assert [one.p_adjusted for one in family] == pytest.approx(holm(raw))
    auroc = tests.against("alike", AUROC)
    assert auroc.test.test == "DeLong"
    first, second = table.rows[2].scores[AUROC].value, table.rows[0].scores[AUROC].value
    assert auroc.difference == pytest.approx(first - second, abs=1e-6)


def test_verdicts_and_ties(table):
    tests = block_tests(table)
    assert tests.baseline == "frozen"
    better, alike = (tests.against(cell, ACC) for cell in ("better", "alike"))
    assert (better.verdict, alike.verdict) == ("better", "not told apart")
    assert tests.against("frozen", ACC) is None
    assert tests.tied_with_best(ACC) == {"better"}
    worse = block_tests(replace(table, baseline="better")).against("frozen", ACC)
    assert worse.verdict == "worse"


def test_a_certain_difference_is_too_small_below_the_smallest_that_matters(table):
    found = block_tests(table).against("better", ACC)
    for smallest, verdict in ((found.difference, "better"), (found.difference + 1e-6, "too small")):
        judged = replace(table, smallest=smallest)
        one = block_tests(judged).against("better", ACC)
        assert one.verdict == verdict
        assert ("frozen" in block_tests(judged).tied_with_best(ACC)) is (verdict == "too small")
    words = sentences(block_tests(judged), [ACC])
    assert "BETTER (+" in words[0]
    assert f"shows no difference that matters (less than {100 * smallest:g} points)" in words[0]
    assert f"from {100 * smallest:g} points on" in words[1]
    assert all(one.signs[ACC] == "tied" for one in decide(judged).standings)


def test_same_block_same_tests(table):
    assert block_tests(table) is block_tests(table)
    assert block_tests(table) is not block_tests(replace(table))
    assert block_tests(replace(table, baseline="alike")).baseline == "alike"
    assert block_tests(replace(table, baseline="unknown")).baseline == ""


def test_words(table):
    words = sentences(block_tests(table), [ACC])
    assert words[0].startswith("Toy set ACC: BETTER (+")
    assert "p < 0.001) is better than FROZEN; the other one is not told apart (|difference| <= " in words[0]
    assert "two standard errors over seeds" in words[1]
    assert len(words) == 2  # no seed is missing
    assert [one.row.title for one in decide(table).choices] == ["BETTER"]


def test_words_say_when_one_seed_was_run(make):
    made = block(row("frozen", make("frozen", trained=0)), row("a", make("a", 1.8, 1)), seeds(make, "b", 1.0))
    words = sentences(tests := block_tests(made), tests.keys)
    assert words[-1] == "A was run with one seed only: the noise of training is not covered there."
    many = [row(f"m{i}", make(f"m{i}", 1 + i / 10, i)) for i in range(5)]
    words = sentences(
        tests := block_tests(block(row("frozen", make("frozen", trained=0)), *many)), tests.keys
    )
    assert words[-1].startswith("The methods that train were run with one seed only")


def test_words_without_baseline_name_ties(make):
    tests = block_tests(block(seeds(make, "one", 1.0), seeds(make, "two", 1.01), seeds(make, "far", 0.1)))
    assert tests.tied_with_best(ACC) == {"one", "two"}
    words = sentences(tests, [ACC])
    assert "is best;" in words[0]
    assert "is tied with it" in words[0]


def test_a_difference_within_the_spread_of_seeds_does_not_count(make):
    uneven = row("uneven", make("uneven", 0.9, 0), make("uneven", 2.6, 1))
    tests = block_tests(block(row("frozen", make("frozen", 1.0, 9, trained=0)), uneven))
    found = tests.against("uneven", ACC)
    assert found.verdict == "within seeds"
    assert (
        "differs on these patients, but by no more than two standard errors over seeds"
        in sentences(tests, [ACC])[0]
    )


def test_seed_error(make):
    trained, frozen = seeds(make, "t", 1.5), row("f", make("f", trained=0))
    values = [run.scores()[ACC]["value"] for run in trained.runs]
    assert seed_error(trained, frozen, ACC) == pytest.approx(np.std(values, ddof=1) / np.sqrt(3))
    assert seed_error(trained, row("once", make("once", seed=4)), ACC) is None
    head = row("h", make("h", trained=0, info={"head_parameters": 10}))
    assert seed_error(trained, head, ACC) is None


def test_order_of_samples_does_not_matter(make):
    order = np.random.default_rng(5).permutation(N)
    plain, mixed = row("a", make("a", 1.5, 1)), row("b", make("b", 1.5, 1, order=order))
    base = row("f", make("f", 1.0, 9, trained=0))
    for metric in ("acc", "auroc", "balanced_acc", "auroc_flat"):
        first, second = (compared(one, base, metric).test for one in (plain, mixed))
        assert first.p_value == pytest.approx(second.p_value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"target": np.roll(TARGET, 1)}, "different samples or labels"),
        ({"metrics": {"acc": 0.123}}, "not the stored 0.123"),
        ({"arrays": {"sample_acc": np.zeros(N - 1)}}, "damaged: 'sample_acc' has not one entry per image"),
        ({"metrics": {"acc": 0.5}, "arrays": {"other": np.zeros(N)}}, "no paired test"),
        ({"metrics": {"auroc": 0.5}}, "X has no result"),
    ],
)
def test_reasons(make, changes, reason):
    found = compared(row("x", make("x", **changes)), row("f", make("f", trained=0)))
    assert (found.test, found.verdict) == (None, "not tested")
    assert reason in found.reason


def test_the_same_ids_and_labels_with_other_images_are_not_paired(make):
    first, second = make("a", 1.5, 1), make("b", 1.0, 2)
    for run, images in ((first, "old"), (second, "new")):
        run.tasks["zeroshot"]["identity"] = {"data": {"toy": f"{images}-rows"}}
    one = compared(row("a", first), row("b", second))
    assert (one.verdict, one.reason) == ("not tested", "they were evaluated on different images or labels")


def test_missing_predictions_are_said_in_words(make):
    lost = make("lost", 1.5)
    (lost.folder / "predictions" / "zeroshot-toy.npz").unlink()
    made = block(row("frozen", make("frozen", trained=0)), row("lost", lost))
    assert (
        sentences(block_tests(made), [ACC])[0]
        == "Toy set ACC: Not tested: LOST: its predictions are missing."
    )
    assert block_tests(made).tied_with_best(ACC) == frozenset()


def test_rows_that_are_not_ranked_take_no_part(make):
    limited = replace(seeds(make, "limited", 3.0), ranked=False)
    made = block(row("frozen", make("frozen", trained=0)), seeds(make, "a", 1.5), limited)
    tests = block_tests(made)
    assert tests.against("limited", ACC) is None
    assert tests.tied_with_best(ACC) == {"a"}


def test_per_sample_metrics_of_any_task(make):
    a, b = np.random.default_rng(3).random((2, N))
    a[:5] = b[:5] = np.nan
    rows = [
        row(name, make(name, metrics={"cnr": float(np.nanmean(values))}, arrays={"sample_cnr": values}))
        for name, values in (("a", a), ("b", b))
    ]
    test = compared(*rows, "cnr").test
    (expected,) = permutation_tests((a - b)[5:, None], cluster_codes(PATIENTS[5:]))
    assert (test.difference, test.n) == (pytest.approx(expected.difference), N - 5)
    assert test.p_value == pytest.approx(expected.p_value, abs=0.01)


@pytest.mark.parametrize(("shift", "verdict"), [(0.004, "too small"), (0.006, "better")])
def test_what_rounds_to_nothing_is_no_difference_in_any_unit(make, shift, verdict):
    values = np.random.default_rng(3).random(N)
    runs = [
        make(name, metrics={"ratio": float(these.mean())}, arrays={"sample_ratio": these})
        for name, these in (("a", values + shift), ("b", values))
    ]
    for run in runs:
        run.tasks["zeroshot"]["metrics"] = {"ratio": {"unit": ""}}
    (one,) = adjusted([compared(*(row(run.method, run) for run in runs), "ratio")])
    assert one.verdict == verdict


def test_dice_and_pooled_dice(make):
    generator = np.random.default_rng(4)
    actual = generator.integers(10, 100, N)
    rows = []
    for name, share in (("a", 0.8), ("b", 0.6)):
        shared = (actual * np.clip(generator.normal(share, 0.1, N), 0, 1)).astype(np.int64)
        arrays = {"shared": shared, "predicted": actual, "actual": actual}
        built = segmentation_metrics(Overlaps(**arrays))
        values = {metric: plain_value(one, N) for metric, one in built.items()}
        rows.append(row(name, make(name, metrics=values, arrays=arrays)))
    for metric, kind in (("dice", "permutation"), ("iou", "permutation"), ("dice_pooled", "bootstrap")):
        test, key = compared(*rows, metric).test, ("zeroshot", "toy", metric)
        assert (test.test, test.p_value < 0.01) == (kind, True)
        assert test.difference == pytest.approx(rows[0].scores[key].value - rows[1].scores[key].value)
        assert test.ci_low < test.difference < test.ci_high


def test_boxes_are_tested_by_resampling(make):
    corners = np.tile([[8.0, 8.0, 40.0, 40.0]], (N, 1))
    truth = {"truth": corners, "truth_image": np.arange(N)}
    rows = []
    for name, hits in (("a", 180), ("b", 60)):
        found = corners.copy()
        found[hits:] += 30
        confidence = np.linspace(0.9, 0.6, N)
        arrays = {"found": found, "found_image": np.arange(N), "found_score": confidence, **truth}
        value = (1 + 100 * hits // N) / 101  # recalls 0, 0.01, ... up to the share of boxes found
        run = make(name, metrics={"map": value}, arrays=arrays)
        measure = run_evidence(run, ("zeroshot", "toy", "map")).measure
        assert isinstance(measure, np.ndarray)
        assert measure[0] == pytest.approx(value)
        rows.append(row(name, run))
    test = compared(*rows, "map").test
    assert (test.test, test.p_value < 0.01) == ("bootstrap", True)


@pytest.mark.parametrize("form", ["cosines", "final", "final, of an older version"])
@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_paired_tests_compare_the_numbers_that_the_task_has_stored(tmp_path, kind, form):
    final, rule = (True, "tqn") if "final" in form else (False, "global")
    classes = 2 if kind == "binary" else 3
    targets = TARGET % classes if kind != "multilabel" else np.eye(3, dtype=np.int64)[TARGET]
    data = replace(
        small.images(kind, N), targets=targets, classes=tuple("abc"[:classes]), ids=list(IDS), clusters=list(PATIENTS)
    )  # fmt: skip
    around = small.context(load_backbone("tiny"), tmp_path)
    rows = []
    for name, skill in (("a", 0.3), ("b", 0.6)):
        similarity = scores(skill, int(10 * skill))[:, :classes].astype(np.float64)
        scale, options = 1.0 if final else 5.0, ZeroShotOptions(bootstrap=5)
        result = scored(data, similarity, scale, around, options, final=final, rule=rule)
        if "older" in form:
            del result.info["final"]
        cell = Store(tmp_path).cell(f"runs/s/tiny/{name}/seed-0")
        cell.write_npz("predictions/zeroshot-toy.npz", result.predictions)
        stored = {"kind": result.kind, "metrics": result.metrics, "info": result.info}
        config = {"suite_name": "s", "backbone": "tiny", "method": name, "seed": 0}
        task = {"zeroshot": {"datasets": {"toy": stored}}}
        rows.append(row(name, Run(cell.path, config, "success", "", task, {}, {}, ())))
    for key in rows[0].scores:
        found = compared(*rows, key[2])
        assert found.test is not None, found.reason
        assert found.test.difference == pytest.approx(rows[0].scores[key].value - rows[1].scores[key].value)


def test_ranks(make, table):
    found = block_tests(table).ranks()
    assert found.names[0] == "better"
    assert found.titles[0] == "BETTER"
    assert found.columns == (ACC, AUROC)
    assert sum(found.average) == pytest.approx(6)
    assert found.critical_difference == pytest.approx(2.343 * np.sqrt(3 * 4 / (6 * 2)), abs=5e-3)
    assert found.groups == (found.names,)
    assert BlockTests(block(*table.rows[:2])).ranks() is None


def test_transductive_columns_are_not_ranked(make):
    made = block(*(row(f"m{i}", make(f"m{i}", 1 + i, i, info={"transductive": True})) for i in range(3)))
    assert block_tests(made).ranks() is None


def test_a_second_task_on_the_same_data_is_named(make):
    rows = []
    for name, skill in (("f", 1.0), ("a", 1.8)):
        run = make(name, skill, 1, trained=0)
        run.tasks["transclip"] = run.tasks["zeroshot"]
        stored = run.folder / "predictions" / "zeroshot-toy.npz"
        stored.with_name("transclip-toy.npz").write_bytes(stored.read_bytes())
        rows.append(row(name, run))
    tests = block_tests(block(*rows))
    assert [key[0] for key in tests.keys] == ["zeroshot", "zeroshot", "transclip", "transclip"]
    assert [words.split(":")[0] for words in sentences(tests, tests.keys)[:3:2]] == [
        "Toy set ACC",
        "Toy set ACC (transclip)",
    ]
