"""The answer of a table: each method against the baseline, the best of each column, and three sentences.

Terminal, page and Markdown show these objects; nothing else decides or says who is better.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from benchmark.report.model import Block, Key, Row
from benchmark.report.significance.comparisons import BlockTests, Comparison, Ranks, block_tests
from benchmark.report.significance.wording import column_text, least_text, listed, step_text

Sign = Literal["better", "tied", "worse", ""]
"""How a row stands in one column: "tied" is no difference that matters, "" is not measured or not tested."""
SIGNS: Mapping[Sign, str] = {"better": "+", "tied": "=", "worse": "\N{MINUS SIGN}", "": ""}
_MANY = 3
"""Names that a sentence lists before it counts the rest."""


@dataclass(frozen=True)
class Standing:
    """One row against the baseline in every tested column; without a baseline, against the best row of each.

    Attributes:
        row: the method.
        tests: column -> its test; the row is ``first`` against a baseline, else ``second``.
        signs: column -> how it stands there.
        block: whose row it is.
    """

    row: Row
    tests: Mapping[Key, Comparison]
    signs: Mapping[Key, Sign]
    block: Block

    def columns(self, sign: Sign) -> list[Key]:
        """The columns in which it stands so."""
        return [key for key, found in self.signs.items() if found == sign]

    def count(self, sign: Sign) -> int:
        """In how many columns it stands so."""
        return len(self.columns(sign))

    @property
    def text(self) -> str:
        """All of it in words: ``better in 3 of 6 columns (by 2.4 or more), worse in 1 (by 1.0 or more)``."""
        tested = sum(bool(sign) for sign in self.signs.values())
        parts = [
            f"{sign} in {self.count(sign)} of {tested} (by {self.least(sign) or '?'} or more)"
            for sign in ("better", "worse")
            if self.count(sign)
        ]
        same = self.count("tied")
        parts += [f"no difference that matters in {same}"] if same else []
        untested = len(self.signs) - tested
        return "; ".join([*parts, *([f"not tested in {untested}"] if untested else [])]) or "not tested"

    def least(self, sign: Sign) -> str:
        """By how much at least, over the columns where it stands so: the interval's end that is nearer to 0.

        ``2.4`` in points; other units stand behind their number. Empty without a test of this sign.
        """
        ends: dict[str, list[tuple[float, str]]] = {}
        for key in self.columns(sign):
            if (one := self.tests.get(key)) is not None and one.test is not None:
                metric, end = self.block.metric(key), nearest_end(one)
                unit = "" if metric.unit == "%" else f" {metric.unit}".rstrip()
                ends.setdefault(unit, []).append((end, metric.text(end)))
        return ", ".join(min(found)[1] + unit for unit, found in ends.items())


def stand(row: Row, tests: Sequence[Comparison], block: Block) -> Standing:
    """Return how a row stands by tests in which it is the first; a block whose row it is has the metrics."""
    return Standing(row, {one.key: one for one in tests}, {one.key: _sign(one) for one in tests}, block)


def nearest_end(one: Comparison) -> float:
    """The end of the interval of a difference that is nearer to 0, as a size; 0 where 0 lies inside."""
    assert one.test is not None
    low, high = one.test.ci_low, one.test.ci_high
    return 0.0 if low <= 0 <= high else min(abs(low), abs(high))


@dataclass(frozen=True)
class Best:
    """The best row of a column, and those that are not told apart from it, best first."""

    key: Key
    row: Row
    tied: tuple[Row, ...]


@functools.lru_cache(maxsize=32)
def decide(block: Block) -> Decision:
    """Return the answer of a table; the same object for the same block."""
    return Decision(block_tests(block))


class Decision:
    """What a table answers to "which method should I use?".

    Args:
        tests: its paired tests, which are made when they are asked for.

    Attributes:
        base: the row that the others are held against; None where there is none.
    """

    def __init__(self, tests: BlockTests) -> None:
        self.tests, self.block = tests, tests.block
        self.base = tests.by_cell.get(tests.baseline)
        self.keys = tuple(key for key in tests.keys if any(row.compared(key) for row in tests.rows))

    @cached_property
    def standings(self) -> tuple[Standing, ...]:
        """The other rows: those that win more columns than they lose first, cheaper ones first among equals."""
        rows = [row for row in self.tests.rows if row is not self.base]
        found = [self._standing(row) for row in rows] if len(self.tests.rows) > 1 else []
        return tuple(sorted(found, key=_order))

    @cached_property
    def best(self) -> tuple[Best, ...]:
        """The best row of each column that two rows or more have."""
        found = []
        for key in self.keys:
            row, rows = self.tests.best(key), [row for row in self.tests.rows if row.compared(key)]
            if row is not None and len(rows) > 1:
                tied = [one for one in rows if one is not row and one.cell in self.tests.tied_with_best(key)]
                sign = -1 if self.block.metric(key).higher else 1
                tied.sort(key=lambda one, key=key, sign=sign: sign * one.scores[key].value)  # type: ignore[misc]
                found.append(Best(key, row, tuple(tied)))
        return tuple(found)

    @cached_property
    def choices(self) -> tuple[Standing, ...]:
        """Rows that are better in some column and worse in none, in the order of `standings`."""
        return tuple(one for one in self.standings if one.count("better") and not one.count("worse"))

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """What the tests say, what means and ranks say, what it costs: a sentence or two each."""
        if not self.standings or not self.keys:
            return ()
        told = (self._tests_sentence(), _orders_sentence(self), self._cost_sentence())
        return tuple(filter(None, told))

    def leaders(self) -> Iterator[tuple[str, Row]]:
        """Yield the row with the best mean of each headline metric, and that with the best average rank."""
        task = self.block.first_task
        for name in self.block.headline(task):
            keys, higher = self.block.keys(name, task), self.block.metric((task, "", name)).higher
            rows = [row for row in self.tests.rows if keys and all(row.compared(key) for key in keys)]
            means = {row.cell: score.value for row in rows if (score := row.mean_over(keys)) is not None}
            if len(means) > 1:
                choose: Callable[..., Row] = max if higher else min
                what = "mean " if len(keys) > 1 else ""
                yield (
                    f"{what}{self.block.metric((task, '', name)).title}",
                    choose(rows, key=lambda row, means=means: means[row.cell]),
                )
        if self.ranks is not None:
            yield "average rank", self.tests.by_cell[self.ranks.names[0]]

    def named(self, cell: str) -> str:
        """Title of a row, with how it stands against the baseline where it is not the first of `standings`."""
        title, found = self.tests.by_cell[cell].title, {one.row.cell: one for one in self.standings[1:]}
        if self.base is None or cell not in found:
            return title
        better, worse = (found[cell].count(sign) for sign in ("better", "worse"))
        said = (
            f"better in {better}, worse in {worse}"
            if better + worse
            else f"no difference from {self.base.title}"
        )
        return f"{title} ({said})"

    @cached_property
    def ranks(self) -> Ranks | None:
        """Average ranks, where there are enough rows to rank, and more than one test set to rank them over."""
        ranks = self.tests.ranks()
        return None if ranks is None or len({key[:2] for key in ranks.columns}) < 2 else ranks

    def _standing(self, row: Row) -> Standing:
        keys = [key for key in self.keys if row.compared(key)]
        if self.base is not None:
            found = (self.tests.against(row.cell, key) for key in keys)
            return stand(row, [one for one in found if one is not None], self.block)
        tests = {key: one for key in keys if (one := self.tests.against_best(key).get(row.cell)) is not None}
        behind: dict[Key, Sign] = {key: "worse" if one.matters else _sign(one) for key, one in tests.items()}
        signs: dict[Key, Sign] = {
            key: "better" if self.tests.best(key) is row else behind.get(key, "") for key in keys
        }
        return Standing(row, tests, signs, self.block)

    def _tests_sentence(self) -> str:
        columns = _count(len(self.keys), "column")
        if self.base is None:
            lead = self.standings[0]
            return (
                f"{lead.row.title} is best in {lead.count('better')} of {columns}; there is no baseline here."
            )
        base = self.base.title
        if not any(sign for one in self.standings for sign in one.signs.values()):
            reasons = dict.fromkeys(
                test.reason for one in self.standings for test in one.tests.values() if test.reason
            )
            return f"Nothing could be tested against {base}: {'; '.join(reasons)}."
        if self.choices:
            first, *others = self.choices
            more = f" So {'is' if len(others) == 1 else 'are'} {_names(others)}." if others else ""
            won = first.columns("better")
            where = f"on {listed(column_text(self.block, key) for key in won)}"
            where = where if len(won) <= _MANY else f"in {len(won)} of {columns}"
            return (
                f"{first.row.title} is better than {base} {where} (by {first.least('better')} or more), and worse in "
                f"none{f' of {columns}' if len(won) <= _MANY else ''}.{more}"
            )
        mixed = [one for one in self.standings if one.count("better")]
        if not mixed:
            worse = [one for one in self.standings if one.count("worse")]
            named = f"; {_names(worse)} {_be(worse)} worse somewhere" if worse else ""
            return f"No method is better than {base} in any of {columns}{named}: {base} is the choice here."
        first = mixed[0]
        return (
            f"No method is better than {base} somewhere and worse nowhere. {first.row.title} comes closest: better in "
            f"{first.count('better')} of {columns}, worse in {first.count('worse')}, so the test set decides."
        )

    def _cost_sentence(self) -> str:
        lead = (self.choices or self.standings)[0].row
        if self.base is not None and not any(one.count("better") for one in self.standings):
            lead = self.base
        once = self.tests.ran_once(self.keys)
        seeds = (
            " One seed stands behind what trains, so how much training itself moves a score is unknown."
            if once
            else ""
        )
        trained, whole = (lead.efficiency.get(key) for key in ("trainable_parameters", "total_parameters"))
        if trained is None:
            return seeds.strip()
        if not trained:
            return f"{lead.title} trains nothing.{seeds}"
        part = 100 * trained / whole if whole else 0.0
        share = f" ({part:.{2 if part < 10 else 3}g} % of the model)" if whole else ""
        time = step_text(lead.efficiency.get("step_time_p50_s"))
        step = f"; a training step takes {time}" if time else ""
        return f"{lead.title} trains {trained:,.0f} values{share}{step}.{seeds}"


def _order(one: Standing) -> tuple[float, ...]:
    better, worse = one.count("better"), one.count("worse")
    return (worse - better, -better, one.row.efficiency.get("trainable_parameters", 0.0))


def _sign(one: Comparison) -> Sign:
    if one.verdict == "better" or one.verdict == "worse":
        return one.verdict
    return "" if one.verdict == "not tested" else "tied"


def _orders_sentence(decision: Decision) -> str:
    """Say who leads by mean and by average rank, how that row stands in the tests, and what ranks cannot tell."""
    leads: dict[str, list[str]] = {}
    for what, row in decision.leaders():
        leads.setdefault(row.cell, []).append(what)
    if not leads:
        return ""
    told = listed(f"{decision.named(cell)} by {listed(what)}" for cell, what in leads.items())
    first = "First is" if len(leads) == 1 else "Means and ranks name different leaders:"
    return f"{first} {told}{_rank_limit(decision.ranks)}."


def _rank_limit(ranks: Ranks | None) -> str:
    """What Nemenyi's test does not tell apart from the first by average rank; empty where it stands alone."""
    group = [] if ranks is None else next((one for one in ranks.groups if ranks.names[0] in one), ())
    if ranks is None or not group:
        return ""
    tied = "all methods" if len(group) == len(ranks.names) else f"the first {len(group)}"
    return f"; ranks alone do not tell {tied} apart (critical difference {ranks.critical_difference:.1f})"


def _names(found: Sequence[Standing]) -> str:
    titles = [one.row.title for one in found]
    return listed(titles if len(titles) <= _MANY else [*titles[:_MANY], f"{len(titles) - _MANY} more"])


def _be(found: Sequence[Standing]) -> str:
    return "is" if len(found) == 1 else "are"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def rule_text(block: Block) -> str:
    """When a row counts as better or worse, in one sentence."""
    return (
        "Better and worse: paired test on the same test patients, p < 0.05 after Holm's adjustment, at least "
        f"{least_text(block)}, and more than two standard errors over seeds where those are known."
    )
