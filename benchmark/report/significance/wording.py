"""Describes the tests of a table in sentences: which differences matter, and which do not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from benchmark.console import duration
from benchmark.report.model import Block, Key, Row

if TYPE_CHECKING:
    from benchmark.report.significance.comparisons import BlockTests, Comparison, Verdict

_NUMBERS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"
)  # fmt: skip
_VERDICTS: dict[Verdict, tuple[str, str]] = {
    "better": ("is better than {base}", "are better than {base}"),
    "worse": ("is worse than {base}", "are worse than {base}"),
    "within seeds": (
        "differs on these patients, but by no more than two standard errors over seeds",
        "differ on these patients, but by no more than two standard errors over seeds",
    ),
    "too small": (
        "shows no difference that matters (less than {least})",
        "show no difference that matters (less than {least})",
    ),
}
"""Verdict -> what is said of one row, and of several."""
_NOT_TOLD_APART = {
    (True, True): "the other one is not told apart ({bound})",
    (True, False): "the other {number} are not told apart ({bound})",
    (False, True): "{names} is not told apart from {base}",
    (False, False): "none of the {number} other methods is told apart from {base} ({bound})",
}
"""Whether something was said of other rows before, and whether this is one row -> what is said."""


def sentences(tests: BlockTests, keys: Sequence[Key]) -> list[str]:
    """One sentence or more per column, then what the tests do not cover."""
    if len(tests.rows) < 2:
        return []
    told = _against_baseline if tests.baseline else _ties
    found = [text for key in keys if (text := told(tests, key))]
    return [*found, *_limits(tests, keys)] if found else []


def least_text(block: Block) -> str:
    """The smallest difference that matters in a table: ``0.5 points``."""
    return f"{100 * block.smallest:g} points"


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
    by_verdict: dict[Verdict, list[Comparison]] = {}
    for one in found:
        by_verdict.setdefault(one.verdict, []).append(one)
    facts = {"base": base, "least": least_text(tests.block)}
    parts = [
        listed(_named(tests, one) for one in alike) + " " + words[len(alike) > 1].format(**facts)
        for verdict, words in _VERDICTS.items()
        if (alike := by_verdict.get(verdict))
    ]
    if same := by_verdict.get("not told apart"):
        most = max(abs(one.difference or 0.0) for one in same)
        facts["bound"] = f"|difference| <= {tests.block.metric(key).text(most)}"
        facts["number"] = _NUMBERS[len(same)] if len(same) < len(_NUMBERS) else str(len(same))
        facts["names"] = _named(tests, same[0])
        parts.append(_NOT_TOLD_APART[bool(parts), len(same) == 1].format(**facts))
    reasons = "; ".join(dict.fromkeys(one.reason for one in found if one.reason))
    said = [f"{'; '.join(parts)}."] * bool(parts) + [f"Not tested: {reasons}."] * bool(reasons)
    return f"{column_text(tests.block, key)}: {' '.join(said)}"


def _ties(tests: BlockTests, key: Key) -> str:
    """Who is best in one column and who is not told apart from it."""
    best, tied = tests.best(key), tests.tied_with_best(key)
    if best is None or not tied:
        return ""
    others = [row for row in tests.rows if row.cell in tied and row is not best]
    head = f"{column_text(tests.block, key)}: {best.title} is best"
    if not others:
        return f"{head}, and better than every other row that could be tested."
    return (
        f"{head}; {listed(row.title for row in others)} {'is' if len(others) == 1 else 'are'} tied with it."
    )


def _comparisons(tests: BlockTests, key: Key) -> list[Comparison]:
    """The tests of a column against the baseline, largest difference first."""
    rows = [one for row in tests.rows if (one := tests.against(row.cell, key)) is not None]
    return sorted(rows, key=lambda one: -abs(one.difference or 0.0))


def _named(tests: BlockTests, one: Comparison) -> str:
    title = tests.by_cell[one.first].title
    if one.difference is None or one.p_adjusted is None:
        return title
    metric = tests.block.metric(one.key)
    unit = f" {metric.unit}" if metric.unit not in ("", "%") else ""
    return f"{title} ({metric.signed(one.difference)}{unit}, {p_text(one.p_adjusted)})"


def column_text(block: Block, key: Key) -> str:
    """``CheXpert 5x200 ACC``; with the task where it is not the first to have this dataset and metric."""
    task, dataset, metric = key
    found = dict.fromkeys(other[0] for row in block.rows for other in row.scores if other[1:] == key[1:])
    listed_tasks = [name for name in block.spec.get("tasks") or {} if name in found] or list(found)
    suffix = f" ({task})" if task not in listed_tasks[:1] else ""
    return f"{block.dataset_title(dataset, task)} {block.metric(key).title}{suffix}"


# --- what is not covered ------------------------------------------------------------------------------------


def _limits(tests: BlockTests, keys: Sequence[Key]) -> list[str]:
    once = tests.ran_once(keys)
    units = {tests.block.metric(key).unit for key in keys}
    other = ", or in the unit of the column" if units - {"%"} else ""
    lines = [
        f"Differences are in points{other}. p values are adjusted by Holm over the methods of a column; they cover "
        f"the choice of test patients. A difference counts below 0.05, from {least_text(tests.block)} on"
        + ("." if len(once) == len(tests.rows) else ", if it also exceeds two standard errors over seeds.")
    ]
    if once:
        lines.append(f"{_ran_once(once, tests.rows)}: the noise of training is not covered there.")
    return lines


def _ran_once(once: Sequence[Row], rows: Sequence[Row]) -> str:
    if len(once) >= max(4, len(rows) - 1):
        return "The methods that train were run with one seed only"
    return f"{listed(row.title for row in once)} {'was' if len(once) == 1 else 'were'} run with one seed only"


def three_digits(value: float) -> str:
    """A positive number with three digits, or all of those before the point: 0.0123, 1.50, 969, 4003."""
    if value == 0 or value >= 100:
        return f"{value:.0f}"
    decimals = 3 - len(str(int(value))) if value >= 1 else 4 if value < 0.1 else 3
    return f"{value:.{decimals}f}"


def step_text(seconds: float | None) -> str:
    """Return the time of a training step: milliseconds below a second; empty where nothing was timed."""
    if not seconds:
        return ""
    return f"{three_digits(1000 * seconds)} ms" if seconds < 1 else duration(seconds)
