"""The page's cards: for each suite and backbone what its table answers, as plain texts for ``page.html``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from benchmark.report.figures.efficiency import DECISION
from benchmark.report.figures.style import Picture
from benchmark.report.model import Block, Doubt, Key, Row
from benchmark.report.significance.comparisons import Comparison
from benchmark.report.significance.decision import SIGNS, Decision, Sign, Standing, decide, rule_text
from benchmark.report.significance.wording import p_text, step_text
from benchmark.report.tables.doubts import doubts
from benchmark.report.tables.table import TIED_MARK, parameters_text

_MANY = 12
"""Columns of a matrix that have room for numbers beside their signs."""


@dataclass(frozen=True)
class Mark:
    """One place of the matrix: how a method stands in a column; ``title`` says it in words and numbers."""

    sign: Sign
    text: str
    title: str


@dataclass(frozen=True)
class Number:
    """One place of the slim table; ``value`` sorts it."""

    text: str
    value: float | None
    mark: str = ""
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class Card:
    """All that a card shows.

    Attributes:
        against: what the methods are held against. sets: title of each data set, with its number of columns.
        heads: metric of each column, with its unit. fulls: the same with the data set.
        matrix: title of a method, and its marks. rows: title of a method, its scores and costs.
        missing: titles of rows that were not run. plot: of score against cost.
    """

    heading: str
    against: str
    sentences: Sequence[str]
    rule: str
    sets: Sequence[tuple[str, int]]
    heads: Sequence[str]
    fulls: Sequence[str]
    matrix: Sequence[tuple[str, Sequence[Mark]]]
    rows: Sequence[tuple[str, Sequence[Number]]]
    missing: Sequence[str]
    doubts: Sequence[Doubt]
    plot: Picture | None


def cards(blocks: Sequence[Block], pictures: Sequence[Picture]) -> list[Card]:
    """Return a card per block that has scores."""
    return [_card(decide(block), pictures) for block in blocks if decide(block).keys]


def _card(decision: Decision, pictures: Sequence[Picture]) -> Card:
    block, keys = decision.block, decision.keys
    metrics = [block.metric(key) for key in keys]
    titles = [_set_title(block, key) for key in keys]
    plots = (one for one in pictures if one.place == block.heading)
    rows = [row for row in _ordered(decision) if any(key in row.scores for key in keys)]
    return Card(
        heading=block.heading,
        against=f"against {decision.base.title}" if decision.base else "against the best of each column",
        sentences=decision.sentences,
        rule=rule_text(block),
        sets=[(title, len(list(group))) for title, group in groupby(titles)],
        heads=[f"{metric.title}" + (f" [{metric.unit}]" if metric.unit else "") for metric in metrics],
        fulls=[f"{title} {metric.title}" for title, metric in zip(titles, metrics, strict=True)],
        matrix=[(one.row.title, [_mark(one, key, len(keys)) for key in keys]) for one in decision.standings],
        rows=[
            (_named(row, decision), [*(_score(decision, row, key) for key in keys), *_costs(row)])
            for row in rows
        ],
        missing=[row.title for row in block.rows if not row.scores and row.difference is None],
        doubts=doubts(block),
        plot=next((one for one in plots if one.name.startswith(f"figure_{DECISION}")), None),
    )


def _named(row: Row, decision: Decision) -> str:
    """Title of a row of the slim table, with what sets it apart from the others."""
    what = "baseline" if row is decision.base else "" if row.ranked else "not ranked"
    return f"{row.title} ({what})" if what else row.title


def _set_title(block: Block, key: Key) -> str:
    title = block.dataset_title(key[1], key[0])
    return title if key[0] == block.first_task else f"{title} {key[0]}"


def _ordered(decision: Decision) -> Iterator[Row]:
    """The baseline, the others as they stand, and those that take no part in tests."""
    first = [decision.base] if decision.base else []
    tested = [*first, *(one.row for one in decision.standings)]
    cells = {row.cell for row in tested}
    yield from tested
    yield from (row for row in decision.block.rows if row.cell not in cells and row.difference is None)


def _mark(one: Standing, key: Key, columns: int) -> Mark:
    sign, test = one.signs.get(key, ""), one.tests.get(key)
    if test is None or test.difference is None:
        return Mark(sign, SIGNS[sign] or "-", test.reason if test is not None and test.reason else "")
    size = abs(test.difference)
    number = one.block.metric(key).text(size) if sign in ("better", "worse") and columns <= _MANY else ""
    return Mark(sign, SIGNS[sign] + number, _said(one, key, test))


def _said(one: Standing, key: Key, test: Comparison) -> str:
    metric = one.block.metric(key)
    p_value = "" if test.p_adjusted is None else f", {p_text(test.p_adjusted)}"
    direction = 1 if test.first == one.row.cell else -1
    difference = metric.signed(direction * (test.difference or 0.0))
    return f"{difference} {metric.difference_unit}{p_value}: {test.verdict}"


def _score(decision: Decision, row: Row, key: Key) -> Number:
    score, metric = row.scores.get(key), decision.block.metric(key)
    if score is None:
        return Number("", None)
    best = next((one for one in decision.best if one.key == key), None)
    tied = best is not None and row.cell in {other.cell for other in best.tied}
    bounds = f"{metric.text(score.bounds[0])} to {metric.text(score.bounds[1])}" if score.bounds else ""
    leads = best is not None and best.row.cell == row.cell
    return Number(metric.text(score.value), score.value, TIED_MARK * tied, bounds, leads)


def _costs(row: Row) -> tuple[Number, Number]:
    trained, seconds = (row.efficiency.get(key) for key in ("trainable_parameters", "step_time_p50_s"))
    count = "" if trained is None else parameters_text(trained)
    return Number(count, trained), Number(step_text(seconds), seconds or None)
