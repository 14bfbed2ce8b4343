"""The tests of a table in plain sentences: which differences are larger than the noise, and which are not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from benchmark.report.collect import Block, Key, Row
from benchmark.report.paper import METRICS

if TYPE_CHECKING:
    from benchmark.report.significance import BlockTests, Comparison

_NUMBERS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"
)  # fmt: skip


def sentences(tests: BlockTests, keys: Sequence[Key]) -> list[str]:
    """One sentence or more per column, then what the tests do not cover."""
    if len(tests.rows) < 2:
        return []
    told = _against_baseline if tests.baseline else _ties
    found = [text for key in keys if (text := told(tests, key))]
    return [*found, *_limits(tests, keys)] if found else []


def summary(tests: BlockTests) -> list[str]:
    """One short line per column: how many rows differ from the baseline, and which one most."""
    base = tests.by_cell.get(tests.baseline)
    if base is None:
        return [text for key in tests.keys if (text := _ties(tests, key))]
    lines = []
    for key in tests.keys:
        tested = [one for one in _comparisons(tests, key) if one.test is not None]
        differ = [one for one in tested if one.larger_than_noise]
        if tested:
            most = f", most {_named(tests, differ[0])}" if differ else ""
            lines.append(
                f"{_column(tests.block, key)}: {len(differ)} of {len(tested)} differ from {base.title}{most}."
            )
    return lines


def percent_points(difference: float) -> str:
    """A difference of two fractions in points: ``+5.2``."""
    return f"{100 * difference:+.1f}"


def p_text(p_value: float) -> str:
    """A p value: ``p = 0.02``, ``p = 0.003``, ``p < 0.001``."""
    if p_value < 0.001:
        return "p < 0.001"
    return f"p = {p_value:.3f}" if p_value < 0.01 else f"p = {p_value:.2f}"


def listed(names: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *head, last = names
    return f"{', '.join(head)} and {last}" if head else last


# --- one column ---------------------------------------------------------------------------------------------


def _against_baseline(tests: BlockTests, key: Key) -> str:
    """What differs from the baseline in one column; empty when it has no result there."""
    found = _comparisons(tests, key)
    if not found:
        return ""
    base = tests.by_cell[tests.baseline].title
    differ = [one for one in found if one.larger_than_noise]
    seeds = [one for one in found if one.significant and one.within_seeds]
    same = [one for one in found if one.test is not None and not one.significant]
    parts = []
    if differ:
        names = listed(_named(tests, one) for one in differ)
        parts.append(f"{names} {'differs' if len(differ) == 1 else 'differ'} from {base}")
    if seeds:
        names = listed(_named(tests, one) for one in seeds)
        verb = "differs" if len(seeds) == 1 else "differ"
        parts.append(f"{names} {verb} on these patients, but by no more than two standard errors over seeds")
    if same:
        parts.append(_undistinguished(tests, same, base, others=bool(parts)))
    sentence = "; ".join(parts)
    untested = _untested(found)
    return f"{_column(tests.block, key)}: " + " ".join(
        text for text in (f"{sentence}." if sentence else "", untested) if text
    )


def _undistinguished(tests: BlockTests, same: Sequence[Comparison], base: str, *, others: bool) -> str:
    most = max(abs(one.difference or 0.0) for one in same)
    bound = f"|difference| <= {100 * most:.1f}"
    if others:
        rest = "other one does" if len(same) == 1 else f"other {_number(len(same))} do"
        return f"the {rest} not ({bound})"
    if len(same) == 1:
        return f"{_named(tests, same[0])} does not differ from {base}"
    return f"none of the {_number(len(same))} other methods differs from {base} ({bound})"


def _untested(found: Iterable[Comparison]) -> str:
    reasons = list(dict.fromkeys(one.reason for one in found if one.reason))
    return f"Not tested: {'; '.join(reasons)}." if reasons else ""


def _ties(tests: BlockTests, key: Key) -> str:
    """Who is best in one column and who is not told apart from it."""
    best, tied = tests.best(key), tests.tied_with_best(key)
    if best is None or not tied:
        return ""
    others = [row for row in tests.rows if row.cell in tied and row is not best]
    head = f"{_column(tests.block, key)}: {best.title} is best"
    if not others:
        return f"{head}, and differs from every other row that could be tested."
    return f"{head}; {listed(row.title for row in others)} {_is(others)} not told apart from it."


def _comparisons(tests: BlockTests, key: Key) -> list[Comparison]:
    """The tests of a column against the baseline, largest difference first."""
    rows = [one for row in tests.rows if (one := tests.against(row.cell, key)) is not None]
    return sorted(rows, key=lambda one: -abs(one.difference or 0.0))


def _named(tests: BlockTests, one: Comparison) -> str:
    title = tests.by_cell[one.first].title
    if one.difference is None or one.p_adjusted is None:
        return title
    return f"{title} ({percent_points(one.difference)}, {p_text(one.p_adjusted)})"


def _column(block: Block, key: Key) -> str:
    """``CheXpert 5x200 ACC``; with the task where it is not the first to have this dataset and metric."""
    task, dataset, metric = key
    found = dict.fromkeys(other[0] for row in block.rows for other in row.scores if other[1:] == key[1:])
    listed_tasks = [name for name in block.spec.get("tasks") or {} if name in found] or list(found)
    suffix = f" ({task})" if task not in listed_tasks[:1] else ""
    return f"{block.dataset_title(dataset, task)} {METRICS.get(metric, metric)}{suffix}"


# --- what is not covered ------------------------------------------------------------------------------------


def _limits(tests: BlockTests, keys: Sequence[Key]) -> list[str]:
    once = tests.ran_once(keys)
    lines = [
        "Differences are in points. p values are adjusted by Holm over the methods of a column; they cover the choice "
        "of test patients. A difference counts below 0.05"
        + ("." if len(once) == len(tests.rows) else " if it also exceeds two standard errors over seeds.")
    ]
    if once:
        lines.append(f"{_ran_once(once, tests.rows)}: the noise of training is not covered there.")
    return lines


def _ran_once(once: Sequence[Row], rows: Sequence[Row]) -> str:
    if len(once) >= max(4, len(rows) - 1):
        return "The methods that train were run with one seed only"
    return f"{listed(row.title for row in once)} {'was' if len(once) == 1 else 'were'} run with one seed only"


def _is(rows: Sequence[Row]) -> str:
    return "is" if len(rows) == 1 else "are"


def _number(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)
