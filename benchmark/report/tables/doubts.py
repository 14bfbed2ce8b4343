"""The list of reasons to doubt a table's numbers; shown when a run ends, below the table and on the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from benchmark.metrics.classification import UNTRAINED
from benchmark.report.model import Block, Doubt, Key, Row
from benchmark.report.significance.comparisons import main_keys
from benchmark.report.significance.wording import column_text
from benchmark.report.tables.columns import shown_tasks

ONE_SEED = Doubt("one seed", "one seed only, so nothing is known of the spread over seeds")
UNCOMMITTED = Doubt("uncommitted changes", "made with uncommitted changes to the program")
_USUAL = (ONE_SEED.kind, UNCOMMITTED.kind)
"""Kinds that many rows share; told last."""


def doubts(block: Block) -> list[Doubt]:
    """Return the doubts of a table, each with its subject: on its data, on what was measured, on its rows."""
    rows = [row for row in block.rows if row.difference is None]
    of_rows = joined((row.title, doubt) for row in rows for doubt in row_doubts(row))
    return [
        *dict.fromkeys((*_of_corpus(rows), *of_data(block))),
        *_chance(block, rows),
        *sorted([*of_rows, *joined(_arithmetic(rows))], key=lambda doubt: doubt.kind in _USUAL),
    ]


def row_doubts(row: Row) -> Iterator[Doubt]:
    """Yield what its runs alone make one doubt; the subject is the row."""
    yield from row.notes
    if row.scores and len(row.runs) == 1 and row.runs[0].trains:
        yield ONE_SEED
    if any((run.provenance.get("git") or {}).get("dirty") for run in (*row.runs, *row.left_out)):
        yield UNCOMMITTED


def row_marks(row: Row) -> list[str]:
    """Short marks of a row: why it cannot be taken as it is."""
    return list(dict.fromkeys([row.missing] * bool(row.missing) + [doubt.kind for doubt in row_doubts(row)]))


def joined(found: Iterable[tuple[str, Doubt]]) -> list[Doubt]:
    """One doubt and the titles of all rows that it applies to."""
    rows: dict[Doubt, list[str]] = {}
    for title, doubt in found:
        rows.setdefault(doubt, []).append(title)
    return [replace(doubt, subject=", ".join(dict.fromkeys(titles))) for doubt, titles in rows.items()]


def _of_corpus(rows: Iterable[Row]) -> Iterator[Doubt]:
    """What adaptation found: images left out, a frozen model that does not prefer the pairs as they are."""
    for run in (run for row in rows for run in row.runs if run.trains):
        for note in map(str, run.adapted.get("data_notes") or ()):
            yield Doubt("corpus", note, "" if note.startswith("corpus") else "Corpus")


def of_data(block: Block) -> Iterator[Doubt]:
    """What preparation and results say of test sets: another split, images left out, classes not scored, near copies.

    Images and patients that two test sets share are no doubt; leaks stand among the notes already.
    """
    for task in shown_tasks(block):
        for dataset in block.datasets(task):
            shared = [item for info in block.facts(dataset, task) for item in info.get("overlaps") or ()]
            seen = [str(item["text"]) for item in shared if item.get("seen") and not item["leak"]]
            for note in (*block.data_notes(dataset, task), *seen):
                yield Doubt("data", note, block.dataset_title(dataset, task))


def _arithmetic(rows: Iterable[Row]) -> Iterator[tuple[str, Doubt]]:
    """Rows that were computed in another arithmetic than most."""
    used = [(row, _arithmetics(row)) for row in rows]
    counts = Counter(name for _, names in used for name in sorted(names))
    usual = max(counts, key=lambda name: counts[name], default="")
    for row, names in used:
        if others := " and ".join(sorted(names - {usual})):
            yield row.title, Doubt("arithmetic", f"computed in {others}, the others in {usual}")


def _arithmetics(row: Row) -> set[str]:
    identities = (task.get("identity") or {} for run in row.runs for task in run.tasks.values())
    return {str(one["arithmetic"]) for one in identities if one.get("arithmetic")}


# --- chance -------------------------------------------------------------------------------------------------


def _chance(block: Block, rows: Iterable[Row]) -> list[Doubt]:
    """Rows no better, or worse, than an answer that does not look at the image, with the columns where that is so."""
    columns: dict[tuple[Doubt, str], list[str]] = {}
    for key in main_keys(block):
        for row in rows:
            for doubt, chance in _beaten(block, row, key):
                column = f"{column_text(block, key)} ({block.metric(key).text(chance)})"
                columns.setdefault((doubt, column), []).append(row.title)
    told: dict[Doubt, list[str]] = {}
    for kind in dict.fromkeys(doubt for doubt, _ in columns):
        for (doubt, column), titles in columns.items():
            if doubt == kind:
                told.setdefault(replace(doubt, subject=", ".join(titles)), []).append(column)
    return [replace(doubt, text=f"{doubt.text} on {', '.join(columns)}") for doubt, columns in told.items()]


def _beaten(block: Block, row: Row, key: Key) -> Iterator[tuple[Doubt, float]]:
    """Yield what a score casts doubt on, and what it should beat (docs/statistics.md)."""
    score = row.scores.get(key)
    if score is None:
        return
    metric, guess = block.metric(key), _guess(block, key)
    sign = 1 if metric.higher else -1
    bounds = (score.value if bound is None else bound for bound in (score.ci_low, score.ci_high))
    low, high = sorted(sign * bound for bound in bounds)
    if guess is not None and low <= sign * guess:
        worse = high < sign * guess
        kind, words = ("worse than chance",) * 2 if worse else ("at chance", "no better than chance")
        yield Doubt(kind, words), guess
        return
    for name, title in metric.references.items():
        reference = row.scores.get((*key[:2], name))
        # a head on an untrained tower looks at the image all the same
        if reference is not None and not name.endswith(UNTRAINED) and low <= sign * reference.value:
            yield Doubt("at chance", f"no better than '{title}'"), reference.value


def _guess(block: Block, key: Key) -> float | None:
    """What guessing gets, where that is known."""
    task, dataset, _ = key
    chance = block.metric(key).chance
    if chance != "classes":
        return chance if isinstance(chance, int | float) else None
    classes = next((info["classes"] for info in block.facts(dataset, task) if info.get("classes")), ())
    return 1 / len(classes) if classes else None
