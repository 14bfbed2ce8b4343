"""Decides which differences matter: tests on the same test patients, ties with the best, average ranks.

A row is better or worse than another when the p value of their difference, Holm-adjusted over the methods of the
column, is below 0.05, when the difference is more than two standard errors over training seeds, where those are known,
and when it is at least the smallest that matters. The rule and its limits: docs/statistics.md.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import stdev
from typing import Any, Literal

import numpy as np

from benchmark.errors import StoreError
from benchmark.metrics.classification import SampleMean
from benchmark.metrics.paired_tests import (
    PairedTest,
    Placements,
    average_ranks,
    delong_test,
    friedman,
    holm,
    indistinct,
    nemenyi_critical_difference,
    permutation_tests,
    resampled_test,
)
from benchmark.report.agreement import baseline_cell, other_test_data
from benchmark.report.model import SMALLEST_DIFFERENCE, Block, Key, Row
from benchmark.report.significance.evidence import Evidence, mean_evidence, patient_counts, run_evidence

ALPHA = 0.05
SEED_ERRORS = 2.0
"""A difference must exceed this many standard errors over seeds."""
_ROUNDING = 1e-9
Verdict = Literal["better", "worse", "too small", "within seeds", "not told apart", "not tested"]
"""What is said of a row against another: "too small" is significant, but less than the smallest that matters."""


@dataclass(frozen=True)
class Comparison:
    """One row against another in one column.

    Attributes:
        first, second: their cells. key: the column.
        test: of first minus second; None where there could be none, ``reason`` says why.
        p_adjusted: its p value after Holm's adjustment over the family that it was made in.
        seed_error: standard error over seeds of the difference; None where training noise is unknown.
        smallest: difference that matters, as a fraction. higher: whether more is better.
    """

    first: str
    second: str
    key: Key
    test: PairedTest | None = None
    p_adjusted: float | None = None
    seed_error: float | None = None
    reason: str = ""
    smallest: float = SMALLEST_DIFFERENCE
    higher: bool = True

    @property
    def difference(self) -> float | None:
        """First minus second, as a fraction."""
        return None if self.test is None else self.test.difference

    @property
    def verdict(self) -> Verdict:
        """What may be said of the first row against the second."""
        if self.test is None or self.p_adjusted is None:
            return "not tested"
        if self.p_adjusted >= ALPHA:
            return "not told apart"
        size = abs(self.test.difference)
        if size < self.smallest - _ROUNDING:
            return "too small"
        if self.seed_error is not None and size <= SEED_ERRORS * self.seed_error:
            return "within seeds"
        return "better" if (self.test.difference > 0) is self.higher else "worse"

    @property
    def matters(self) -> bool:
        """Whether one row is better than the other."""
        return self.verdict in ("better", "worse")


@dataclass(frozen=True)
class Ranks:
    """Average ranks over columns; the highest value of a column has rank 1.

    Attributes:
        names: cells, best first. titles: of the same rows. average: their average ranks.
        critical_difference: of Nemenyi's test at 0.05. p_value: of Friedman's test. columns: what was ranked over.
        groups: longest runs of neighbours that Nemenyi's test does not tell apart, two or more each.
    """

    names: tuple[str, ...]
    titles: tuple[str, ...]
    average: tuple[float, ...]
    critical_difference: float
    p_value: float
    columns: tuple[Key, ...]
    groups: tuple[tuple[str, ...], ...]


# --- a table ------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=32)
def block_tests(block: Block) -> BlockTests:
    """Return the tests of a table, made when asked for; the same object for the same block.

    A table without its baseline's row has no tests against a baseline, only ties with the best.
    """
    return BlockTests(block)


class BlockTests:
    """The paired tests of one table, each made once, when it is asked for.

    Args:
        block: the table; only its ranked rows take part.

    Attributes:
        rows: ranked rows with scores. baseline: its cell, empty when it is no such row.
        keys: columns that are tested unless others are named.
    """

    def __init__(self, block: Block) -> None:
        self.block = block
        self.rows = tuple(row for row in block.rows if row.ranked and row.difference is None and row.scores)
        self.by_cell: Mapping[str, Row] = {row.cell: row for row in self.rows}
        wanted = baseline_cell(self.rows, block.baseline)
        self.baseline = wanted if wanted in self.by_cell else ""
        self.keys = main_keys(block)
        self._columns: dict[Key, tuple[dict[str, Comparison], dict[str, Comparison]]] = {}

    @functools.cached_property
    def against_baseline(self) -> Mapping[tuple[str, Key], Comparison]:
        """(cell, column) -> the row against the baseline, over all ``keys``."""
        return {(cell, key): one for key in self.keys for cell, one in self._column(key)[0].items()}

    def against(self, cell: str, key: Key) -> Comparison | None:
        """A row against the baseline in any column; None for the baseline itself, or without either."""
        return self._column(key)[0].get(cell)

    def against_best(self, key: Key) -> Mapping[str, Comparison]:
        """The best row of a column against every other: cell of the other -> best minus other."""
        return self._column(key)[1]

    def best(self, key: Key) -> Row | None:
        """The row with the best value of a column, the first of equal ones."""
        rows = [row for row in self.rows if row.compared(key)]
        choose = max if self.block.metric(key).higher else min
        return choose(rows, key=lambda row: row.scores[key].value, default=None)

    def tied_with_best(self, key: Key) -> frozenset[str]:
        """The best row of a column and those not told apart from it; empty when none could be tested."""
        tests = self.against_best(key)
        tied = {cell for cell, one in tests.items() if one.test is not None and not one.matters}
        tested = any(one.test is not None for one in tests.values())
        best = self.best(key)
        return frozenset({best.cell, *tied}) if best is not None and tested else frozenset()

    def ranks(self) -> Ranks | None:
        """Average ranks over columns; None with fewer than three rows or two columns that all of them have.

        Transductive results are left out: they use the whole test set at once.
        """
        present = {key for row in self.rows for key in row.scores}
        columns = [key for key in self.keys if key in present and not is_transductive(self.block, key)]
        rows = [row for row in self.rows if all(row.compared(key) for key in columns)]
        if len(rows) < 3 or len(columns) < 2:
            return None
        signs = [1 if self.block.metric(key).higher else -1 for key in columns]
        values = np.array([[row.scores[key].value for row in rows] for key in columns]) * np.c_[signs]
        average = average_ranks(values)
        order = np.argsort(average, kind="stable")
        ranked, average = [rows[index] for index in order], average[order]
        critical = nemenyi_critical_difference(len(rows), len(columns), ALPHA)
        names = tuple(row.cell for row in ranked)
        return Ranks(
            names=names,
            titles=tuple(row.title for row in ranked),
            average=tuple(float(rank) for rank in average),
            critical_difference=critical,
            p_value=friedman(values),
            columns=tuple(columns),
            groups=tuple(names[first : last + 1] for first, last in indistinct(average.tolist(), critical)),
        )

    def ran_once(self, keys: Sequence[Key]) -> list[Row]:
        """Rows whose training noise is unknown in some of these columns: they vary, and one seed was run."""
        return [
            row
            for row in self.rows
            if any(row.compared(key) and seed_variance(row, key) is None for key in keys)
        ]

    def _column(self, key: Key) -> tuple[dict[str, Comparison], dict[str, Comparison]]:
        """All tests of a column, each family adjusted on its own: against the baseline, and of the best."""
        if key not in self._columns:
            rows = [row for row in self.rows if row.compared(key)]
            base, best = self.by_cell.get(self.baseline), self.best(key)
            usable = base is not None and base.compared(key)
            first = [(row, base) for row in rows if base is not None and usable and row is not base]
            second = [(best, row) for row in rows if best is not None and row is not best]
            found = compare_pairs([*first, *second], key, self.block)
            self._columns[key] = (
                {one.first: one for one in adjusted(found[: len(first)])},
                {one.second: one for one in adjusted(found[len(first) :])},
            )
        return self._columns[key]


def main_keys(block: Block) -> tuple[Key, ...]:
    """Columns that are tested by default: an experiment's own, else the headline of each task."""
    present = dict.fromkeys(key for row in block.rows if row.difference is None for key in row.scores)
    wanted = {task: block.headline(task) for task in dict.fromkeys(key[0] for key in present)}
    if block.experiment is not None:
        wanted = {task: list(names) for task, names in block.experiment.tasks.items()}
    order = list(block.spec.get("tasks") or {})
    tasks = sorted(wanted, key=lambda task: order.index(task) if task in order else len(order))
    keys = (
        (task, dataset, name) for task in tasks for dataset in block.datasets(task) for name in wanted[task]
    )
    return tuple(key for key in dict.fromkeys(keys) if key in present)


def is_transductive(block: Block, key: Key) -> bool:
    """Whether a column's answers for one image depend on the other test images."""
    return any(info.get("transductive") for info in block.facts(key[1], key[0]))


# --- pairs of rows ------------------------------------------------------------------------------------------


def compare_rows(first: Row, second: Row, keys: Iterable[Key], block: Block) -> list[Comparison]:
    """Test two rows in several columns of a table, not adjusted."""
    return [compare_pairs([(first, second)], key, block)[0] for key in keys]


def adjusted(family: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons of one family with Holm-adjusted p values."""
    p_values = holm([math.nan if one.test is None else one.test.p_value for one in family])
    return [
        one if math.isnan(p_value) else replace(one, p_adjusted=float(p_value))
        for one, p_value in zip(family, p_values, strict=True)
    ]


def compare_pairs(pairs: Sequence[tuple[Row, Row]], key: Key, block: Block) -> list[Comparison]:
    """Test pairs of rows in one column, not adjusted; means over samples are tested all at once."""
    metric = block.metric(key)
    smallest = block.smallest if metric.unit == "%" else metric.least_shown  # it is told in points
    rows = [row for pair in pairs for row in pair]
    evidence = {id(row): _evidence(row, key) for row in {id(row): row for row in rows}.values()}
    sides = [(evidence[id(first)], evidence[id(second)]) for first, second in pairs]
    reasons = [_obstacle(*side) or _other_images(*pair, key) for side, pair in zip(sides, pairs, strict=True)]
    ready = [index for index, reason in enumerate(reasons) if not reason]
    tests = dict(zip(ready, _tests([sides[index] for index in ready]), strict=True))
    found = []
    for index, (first, second) in enumerate(pairs):
        test, reason = tests.get(index), reasons[index]
        if test is not None and math.isnan(test.p_value):
            test, reason = None, "too few patients for a test"
        error = seed_error(first, second, key)
        found.append(
            Comparison(first.cell, second.cell, key, test, None, error, reason, smallest, metric.higher)
        )
    return found


def _evidence(row: Row, key: Key) -> Evidence | str:
    """What a row brings to a test: the mean over its seeds, or why there is nothing."""
    runs = row.scores[key].runs if key in row.scores else ()
    if not runs:
        return f"{row.title} has no result"
    try:
        return mean_evidence([run_evidence(run, key) for run in runs])
    except StoreError as error:
        return f"{row.title}: {error}"


def _obstacle(one: Evidence | str, other: Evidence | str) -> str:
    """Why two rows cannot be tested, or an empty string."""
    if isinstance(one, str):
        return one
    if isinstance(other, str):
        return other
    alike = type(one.measure) is type(other.measure) and one.samples == other.samples
    return "" if alike else "they were evaluated on different samples or labels"


def _other_images(first: Row, second: Row, key: Key) -> str:
    """Why two rows with the same ids and labels cannot be tested; empty where nothing is known against it."""
    runs = [run for row in (first, second) for run in row.scores[key].runs]
    return "they were evaluated on different images or labels" if other_test_data(runs, key[:2]) else ""


def _tests(sides: Sequence[tuple[Any, Any]]) -> list[PairedTest]:
    """Test pairs of evidence that rest on the same samples; pairs of means share their flips."""
    tests: dict[int, PairedTest] = {}
    means: dict[str, list[int]] = {}
    for index, (one, other) in enumerate(sides):
        if isinstance(one.measure, SampleMean):
            means.setdefault(one.samples, []).append(index)
        elif isinstance(one.measure, Placements):
            tests[index] = delong_test(one.measure, other.measure, one.patients)
        else:
            patients = int(one.patients.max()) + 1
            tests[index] = resampled_test(one.measure, other.measure, len(one.patients), patients)
    for members in means.values():
        first = sides[members[0]][0]
        differences = [sides[index][0].measure.values - sides[index][1].measure.values for index in members]
        counts = patient_counts(first.patients)
        found = permutation_tests(
            np.stack(differences, axis=1), first.patients, groups=first.measure.groups, counts=counts
        )
        tests |= dict(zip(members, found, strict=True))
    return [tests[index] for index in range(len(sides))]


# --- seeds --------------------------------------------------------------------------------------------------


def seed_error(first: Row, second: Row, key: Key) -> float | None:
    """Standard error over seeds of the difference of two rows; None when one of them varies and ran once."""
    one, other = seed_variance(first, key), seed_variance(second, key)
    return None if one is None or other is None else math.sqrt(one + other)


def seed_variance(row: Row, key: Key) -> float | None:
    """Variance of a row's mean over seeds: 0 where nothing is trained, None where one seed cannot tell."""
    runs = row.scores[key].runs if key in row.scores else ()
    if len(runs) > 1:
        return stdev(float(run.scores()[key]["value"]) for run in runs) ** 2 / len(runs)
    # a task may train a head of its own, which varies over seeds even where the method does not
    varies = any(run.trains or "head_parameters" in run.info(key[0], key[1]) for run in runs)
    return None if varies else 0.0
