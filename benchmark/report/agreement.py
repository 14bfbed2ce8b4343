"""Decides which runs may be averaged and compared: those with the same settings, data, weights and formulas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmark.config.cell_settings import adapt_settings, settings_key
from benchmark.config.experiments import variant_text
from benchmark.report.model import DatasetKey, Doubt, Row, Run, mean_scores
from benchmark.store.cells import leaves

OTHER_DATA = "other data"
"""Kind of the doubts on results that were made of other things than the others of their table."""
Made = Mapping[tuple[str, ...], Any]
"""What a result was made of: a part, what it is for, and what tells the runs in which it must be the same -> its digest
or version."""
_DIFFERENCES = {
    ("numbers", "test"): "version {mine} of the numbers, not {theirs}",
    ("numbers", "adapter"): "version {mine} of the numbers in training, not {theirs}",
    ("images", "test"): "other images in {title}",
    ("images", "corpus"): "other images in the corpus",
    ("images", "validation"): "other images in the validation set",
    ("rows", "test"): "other labels or texts in {title}",
    ("rows", "corpus"): "other labels or texts in the corpus",
    ("rows", "validation"): "other labels or texts in the validation set",
    ("weights", "test"): "other weights of the backbone",
}
"""Part and use in which results differ -> what is said."""


# --- settings -----------------------------------------------------------------------------------------------


def by_settings(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Split the runs of a cell by their settings, the seed and ``limit`` left out.

    Returns:
        What tells the runs of a group from the others, as in the name of a variant (empty for a group without others),
        with its runs. The first group has most finished runs, of equal ones the newest. Runs that are not of the
        cell's own recipe (imported ones) or say nothing of their settings stand in it too.
    """
    groups: dict[str, list[Run]] = {}
    others: list[Run] = []
    for run in runs:
        own = run.config and not run.imported
        (groups.setdefault(settings_key(_settings(run)), []) if own else others).append(run)
    ordered = sorted(groups.values(), key=_weight, reverse=True) or [[]]
    ordered[0] += others
    flat = [dict(leaves(adapt_settings(_settings(group[0])), lists=False)) for group in ordered if group]
    names = {name for one in flat for name in one if name != "seed"}
    differing = [name for name in names if len({repr(one.get(name)) for one in flat}) > 1]
    # the key as rows of experiments spell it, r and not options.r
    short = {name: name.removeprefix("options.").removeprefix("suite.") for name in differing}
    labels = [variant_text({short[name]: one.get(name) for name in differing}) for one in flat]
    return list(zip(labels, ordered, strict=True))


def _weight(runs: Sequence[Run]) -> tuple[int, str]:
    return sum(bool(run.scores()) for run in runs), max(run.created for run in runs)


def _settings(run: Run) -> dict[str, Any]:
    return {**run.config, "limit": None}


# --- what results were made of ------------------------------------------------------------------------------


def comparable(rows: Sequence[Row], baseline: str | None) -> list[Row]:
    """Return the rows of a table with means over results that were made of the same things, and notes on the others.

    A row without such results keeps its score, which then stands apart.

    Args:
        rows: of one table. Those that are not ranked beside others that are stay as they are.
        baseline: as in `Block`.
    """
    ranked = any(row.ranked and row.scores for row in rows)
    checked = [row for row in rows if row.scores and row.difference is None and (row.ranked or not ranked)]
    base = baseline_cell(checked, baseline)
    wanted = {
        dataset: usual([(row.cell, run) for row in checked for run in _having(row, dataset)], dataset, base)
        for dataset in {key[:2] for row in checked for key in row.scores}
    }
    return [_comparable(row, wanted) if any(row is one for one in checked) else row for row in rows]


def baseline_cell(rows: Sequence[Row], wanted: str | None) -> str:
    """The cell that the others are compared with: the one asked for, else the first row in which nothing is trained."""
    return next((row.cell for row in rows if not row.trains), "") if wanted is None else wanted


def _comparable(row: Row, wanted: Mapping[DatasetKey, Made]) -> Row:
    """Let each score of a row be the mean of the runs that were made of what is wanted, else of those alike."""
    scores, told = dict(row.scores), dict.fromkeys(note for note in row.notes if note.kind != OTHER_DATA)
    for dataset in dict.fromkeys(key[:2] for key in row.scores):
        runs = _having(row, dataset)
        differing = [_differences(run, dataset, wanted[dataset]) for run in runs]
        fits = not all(differing)
        own = wanted[dataset] if fits else usual([(row.cell, run) for run in runs], dataset)
        for run, words in zip(runs, differing, strict=True):
            said, seed = f"made with {'; '.join(words)}", f"seed {run.seed} "
            if words:
                text = f"{seed}{said}: left out" if fits else f"{said}: not compared"
                told[Doubt(OTHER_DATA, text)] = None
        kept = [run for run in runs if not _differences(run, dataset, own)]
        found = mean_scores(kept, dataset, apart=not fits)
        scores |= {key: score for key, score in found.items() if key in scores}
    return replace(row, scores=scores, notes=tuple(told))


def _having(row: Row, dataset: DatasetKey) -> list[Run]:
    """The runs of a row that have a result of a dataset."""
    return [run for run in row.runs if any(key[:2] == dataset for key in run.scores())]


def usual(found: Sequence[tuple[str, Run]], dataset: DatasetKey, baseline: str = "") -> Made:
    """Return what the results of one dataset must be made of to stand in one table.

    Part by part: that of the baseline where it has one, else what most rows share, of equal ones the newest runs; each
    part among the runs that agree on the parts before it.

    Args:
        found: cell and run of each result.
        dataset: with its task.
        baseline: a cell.
    """
    left = [(cell, run, made_of(run, dataset)) for cell, run in found]
    chosen: dict[tuple[str, ...], Any] = {}
    for part in dict.fromkeys(part for _, _, made in left for part in made):
        having = [(cell, run, made[part]) for cell, run, made in left if part in made]
        having = [one for one in having if one[0] == baseline] or having
        if not having:  # those that had it differ in another part
            continue
        rows = Counter(value for _, value in dict.fromkeys((cell, value) for cell, _, value in having))
        newest = {value: max(run.created for _, run, other in having if other == value) for value in rows}
        chosen[part] = max(rows, key=lambda value: (rows[value], newest[value]))
        left = [one for one in left if one[2].get(part, chosen[part]) == chosen[part]]
    return chosen


def made_of(run: Run, dataset: DatasetKey) -> Made:
    """Return what a run's result was made of; parts that do not bear on it, or that nothing is known of, are left out.

    Weights, and images, which are fitted to it, must be the same among the runs of a backbone; what a method is adapted
    on among those of a suite that do not say otherwise themselves, as the points of a sweep over the corpus do.
    """
    result, adapted = run.task(dataset[0]).get("identity") or {}, run.adapted.get("identity") or {}
    changes = [change for change in run.variant.split(",") if change.startswith("corpus.")]
    made: dict[tuple[str, ...], Any] = {("numbers", "test"): result.get("numbers", 0)}
    made |= _data("test", (result.get("data") or {}).get(dataset[1]), run.backbone)
    made[("weights", "test", run.backbone)] = result.get("weights")
    if run.trains and not run.imported:
        made[("numbers", "adapter")] = adapted.get("numbers", 0)
        for use in ("corpus", "validation"):
            made |= _data(use, (adapted.get("data") or {}).get(use), run.backbone, run.suite, *changes)
    return {part: value for part, value in made.items() if value is not None}


def _data(use: str, digest: str | None, backbone: str, *among: str) -> dict[tuple[str, ...], str]:
    """The two halves of a digest: of the images as a backbone takes them, and of what is said of them."""
    images, _, rows = (digest or "").partition("-")
    halves = {("images", use, backbone, *among): images, ("rows", use, *among): rows}
    return {part: half for part, half in halves.items() if half}


def _differences(run: Run, dataset: DatasetKey, wanted: Made) -> list[str]:
    """Say in which parts a result was not made of what is wanted."""
    task = ((run.config.get("suite") or {}).get("tasks") or {}).get(dataset[0]) or {}
    title = ((task.get("datasets") or {}).get(dataset[1]) or {}).get("title") or dataset[1]
    return [
        _DIFFERENCES[part[0], part[1]].format(mine=value, theirs=wanted[part], title=title)
        for part, value in made_of(run, dataset).items()
        if wanted.get(part, value) != value
    ]


def other_test_data(runs: Sequence[Run], dataset: DatasetKey) -> bool:
    """Whether runs are known to have been evaluated on other images or labels, whatever the ids say."""
    found: dict[tuple[str, ...], set[Any]] = {}
    for run in runs:
        for part, value in made_of(run, dataset).items():
            if part[0] in ("images", "rows") and part[1] == "test":
                found.setdefault(part, set()).add(value)
    return any(len(values) > 1 for values in found.values())
