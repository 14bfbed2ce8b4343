"""Decides which runs may be averaged and compared: those with the same settings, data, weights and formulas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmark.config.cell_settings import adapt_settings, settings_key
from benchmark.config.experiments import variant_text

if TYPE_CHECKING:
    from benchmark.report.runs import Run

Place = tuple[str, str]
"""Task and dataset."""
Made = Mapping[tuple[str, ...], Any]
"""What a result was made of: a part, what it is for, and what tells the runs in which it must be the same -> its digest
or version."""


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
    flat = [dict(_flat(adapt_settings(_settings(group[0])))) for group in ordered if group]
    names = {name for one in flat for name in one if name != "seed"}
    differing = [name for name in names if len({repr(one.get(name)) for one in flat}) > 1]
    labels = [variant_text({_short(name): one.get(name) for name in differing}) for one in flat]
    return list(zip(labels, ordered, strict=True))


def _weight(runs: Sequence[Run]) -> tuple[int, str]:
    return sum(bool(run.scores()) for run in runs), max(run.created for run in runs)


def _settings(run: Run) -> dict[str, Any]:
    return {**run.config, "limit": None}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _short(name: str) -> str:
    """The key as rows of experiments spell it, ``r`` and not ``options.r``."""
    return name.removeprefix("options.").removeprefix("suite.")


# --- identity -----------------------------------------------------------------------------------------------


def usual(found: Sequence[tuple[str, Run]], place: Place, baseline: str = "") -> Made:
    """Return what the results of one dataset must be made of to stand in one table.

    Part by part: that of the baseline where it has one, else what most rows share, of equal ones the newest runs; each
    part among the runs that agree on the parts before it.

    Args:
        found: cell and run of each result.
        place: task and dataset.
        baseline: a cell.
    """
    left = [(cell, run, made_of(run, place)) for cell, run in found]
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


def made_of(run: Run, place: Place) -> Made:
    """Return what a run's result was made of; parts that do not bear on it, or that nothing is known of, are left out.

    Weights, and images, which are fitted to it, must be the same among the runs of a backbone; what a method is adapted
    on among those of a suite that do not say otherwise themselves, as the points of a sweep over the corpus do.
    """
    result, adapted = run.tasks[place[0]].get("identity") or {}, run.adapted.get("identity") or {}
    changes = [change for change in run.variant.split(",") if change.startswith("corpus.")]
    made: dict[tuple[str, ...], Any] = {("numbers", "test"): result.get("numbers", 0)}
    made |= _data("test", (result.get("data") or {}).get(place[1]), run.backbone)
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


def differences(made: Made, wanted: Made, title: str) -> list[str]:
    """Say in which parts a result was not made of what is wanted; ``title`` is of its dataset."""
    words = {
        "numbers": "version {mine} of the numbers{use}, not {theirs}",
        "images": "other images in {use}",
        "rows": "other labels or texts in {use}",
        "weights": "other weights of the backbone",
    }
    uses = {"test": title, "corpus": "the corpus", "validation": "the validation set"}
    versions = {"test": "", "adapter": " in training"}
    return [
        words[part[0]].format(
            mine=value, theirs=wanted[part], use=(versions if part[0] == "numbers" else uses)[part[1]]
        )
        for part, value in made.items()
        if part in wanted and wanted[part] != value
    ]


def other_test_data(runs: Sequence[Run], place: Place) -> bool:
    """Whether runs are known to have been evaluated on other images or labels, whatever the ids say."""
    found: dict[tuple[str, ...], set[Any]] = {}
    for run in runs:
        for part, value in made_of(run, place).items():
            if part[0] in ("images", "rows") and part[1] == "test":
                found.setdefault(part, set()).add(value)
    return any(len(values) > 1 for values in found.values())
