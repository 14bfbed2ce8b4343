"""Finds images that the datasets of a run share.

A test image that is also in the corpus, in the validation set, or in the training part of its own head is a leak: the
run stops before training, unless ``allow_overlap`` is set. Images shared by test sets, near copies and shared patients
are reported, not errors. So are leaks inside the split of a few-shot run: who compares with published numbers needs the
split as it is, and the score of the clean test stands beside (:func:`leaked`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmark.console import Reporter
from benchmark.data.entries import PARTS, load_dataset, part_entry
from benchmark.data.prepared import Prepared
from benchmark.data.samples import share
from benchmark.errors import BenchmarkError, DataError
from benchmark.preprocess import Fitting
from benchmark.registry import DATASETS
from benchmark.run.checks.image_hashes import Imprint, imprint

Role = Literal["corpus", "validation", "head", "test"]
FOLDER = "hashes"
"""Folder of the data root where the numbers of images are kept."""
_NAMED = 3
_NEAR: dict[tuple[str, str], Any] = {}
"""Keys of two datasets -> near copies, of this process."""


@dataclass(frozen=True)
class Use:
    """One data entry of a suite and what it is for.

    Attributes:
        role: "head" is what a task trains or selects a head of its own on.
        entry: of the suite. task, dataset: where it stands. part: of a task with a head.
        few: whether corpus and validation set are the labelled images of a dataset, of which few are drawn.
    """

    role: Role
    entry: Mapping[str, Any]
    task: str = ""
    dataset: str = ""
    part: str = ""
    few: bool = False

    def __str__(self) -> str:
        if self.few and self.role != "test":
            kind = "labelled" if self.role == "corpus" else "validation"
            return f"the {kind} images of '{self.dataset}'"
        if self.role == "corpus":
            return f"the corpus '{self.entry['dataset']}'"
        if self.role == "validation":
            return f"the validation set '{self.entry['dataset']}'"
        part = f"part '{self.part}' of " if self.part else "test set "
        return f"{part}'{self.dataset}' ({self.task})"

    def is_test(self, task: str, dataset: str) -> bool:
        """Return whether these are the test images of a dataset of a task."""
        return (self.role, self.task, self.dataset) == ("test", task, dataset)


@dataclass(frozen=True)
class Overlap:
    """What one dataset shares with another, or repeats itself.

    Attributes:
        use: the dataset. other: the one it is compared with.
        of: number of images of ``use``.
        images: ids of those that are also in ``other``. near: ids of their near copies there, pair by pair.
        of_patients: ids of those that are of patients of ``other``. patients: number of these patients.
        contradicted: ids of the same image under other labels, pair by pair.
        seen: what ``use`` measures has seen ``other``.
    """

    use: Use
    other: Use
    of: int
    images: tuple[str, ...]
    near: tuple[tuple[str, str], ...] = ()
    of_patients: tuple[str, ...] = ()
    patients: int = 0
    seen: bool = False
    contradicted: tuple[tuple[str, str], ...] = ()

    @property
    def leak(self) -> bool:
        """Whether the images make a number wrong."""
        return self.seen and bool(self.images)

    @property
    def stops(self) -> bool:
        """Whether the run must not begin."""
        return self.leak and not self.other.few

    def __str__(self) -> str:
        return f"{self.use}: " + "; ".join(f"{text} ({names})" for text, names in self.parts())

    @property
    def said(self) -> str:
        """What is shared, without any id."""
        return "; ".join(text for text, _ in self.parts())

    def parts(self) -> Iterator[tuple[str, str]]:
        """Yield descriptions of what is shared, each with the first ids."""
        also = f"are also in {self.other}" if self.use is not self.other else "occur more than once"
        near = f"are near copies of images in {self.other}"
        people = f"are of {self.patients:,} patients of {self.other}"
        pairs = [f"'{mine}' of '{theirs}'" for mine, theirs in self.near]
        images, of_patients = ([f"'{name}'" for name in ids] for ids in (self.images, self.of_patients))
        others = [f"'{mine}' and '{theirs}'" for mine, theirs in dict(self.contradicted).items()]
        labels = f"have other labels in {self.other}" if self.use is not self.other else "have two labels"
        for names, what in ((images, also), (others, labels), (pairs, near), (of_patients, people)):
            if names:
                more = ", ..." * (len(names) > _NAMED)
                yield f"{len(names):,} of {self.of:,} images {what}", ", ".join(names[:_NAMED]) + more


def uses(suite: Mapping[str, Any]) -> Iterator[Use]:
    """Yield every data entry of a suite with its role."""
    roles: tuple[Role, ...] = ("corpus", "validation")
    few = suite.get("support")
    for role in roles:
        if suite.get(role):
            yield Use(role, suite[role], dataset=few["dataset"], few=True) if few else Use(role, suite[role])
    for task, section in (suite.get("tasks") or {}).items():
        for dataset, entry in (section.get("datasets") or {}).items():
            parts = [part for part in PARTS if part in entry]
            for part in parts:
                yield Use(
                    "test" if part == PARTS[-1] else "head", part_entry(entry, part), task, dataset, part
                )
            if not parts:
                yield Use("test", entry, task, dataset)


def overlaps(
    suite: Mapping[str, Any],
    data_root: Path,
    reporter: Reporter,
    *,
    fitting: Fitting | None = None,
    limit: int | None = None,
) -> list[Overlap]:
    """Compare the datasets of a suite by what their images show.

    Datasets that cannot be opened are left out; the code that needs them reports why.

    Args:
        suite: with the entries to compare.
        data_root: folder of prepared data.
        reporter: told about the work.
        fitting: what the backbone wants; None takes whatever fitting is there.
        limit: rows of every dataset that the run uses, or None.
    """
    seen: dict[str, Imprint | None] = {}
    found: list[tuple[Use, Imprint]] = []
    for use in uses(suite):
        key = json.dumps([use.entry, use.role == "corpus"], sort_keys=True, default=str)
        if key not in seen:
            seen[key] = _imprint(use, data_root, reporter, fitting, limit)
        if (numbers := seen[key]) is not None:
            found.append((use, numbers))
    return list(_compared(found))


def check(found: Iterable[Overlap], *, allow: bool) -> None:
    """Stop the run if a test image is in the data that a model is trained or selected on.

    Raises:
        DataError: in one line how many images, the first ids, both datasets, and what to do.
    """
    leaks = [item for item in found if item.stops]
    if not leaks or allow:
        return
    others = f"; {len(leaks) - 1} more pairs of datasets overlap" if leaks[1:] else ""
    raise DataError(
        f"{leaks[0]}{others}, by content: take them out of one of the two, or go on with allow_overlap=true, "
        "which every result then says"
    )


def facts(found: Iterable[Overlap], task: str, dataset: str) -> dict[str, Any]:
    """Return what the result of a test set says about images and patients that it shares; empty when it shares none."""
    found = list(found)
    mine = [item for item in found if item.use.is_test(task, dataset)]
    twice = [
        {"with": "itself", "seen": True, "leak": False, "text": f"{item.use}: {item.said}"}
        for item in found
        if item.use.few and item.use is item.other and item.contradicted
    ]
    if not mine and not twice:
        return {}
    shared: list[dict[str, Any]] = [
        {"with": "itself" if item.use is item.other else str(item.other), "images": len(item.images),
         "near_copies": len(item.near), "images_of_patients": len(item.of_patients), "patients": item.patients,
         "seen": item.seen, "leak": item.leak, "text": item.said}
        for item in mine
    ]  # fmt: skip
    notes = [about["text"] for about in shared if about["leak"]]
    return {"overlaps": shared + twice, **({"data_notes": notes} if notes else {})}


def leaked(found: Iterable[Overlap], task: str, dataset: str) -> set[str]:
    """Return the ids of a test set's images that the model has seen: the same, a near copy, or one of the patient."""
    ids: set[str] = set()
    for item in found:
        if item.seen and item.use.is_test(task, dataset):
            ids |= {*item.images, *item.of_patients, *(mine for mine, _ in item.near)}
    return ids


def _imprint(
    use: Use, data_root: Path, reporter: Reporter, fitting: Fitting | None, limit: int | None
) -> Imprint | None:
    plugin = None
    try:
        plugin = DATASETS.get(use.entry["dataset"])
        data = load_dataset(use.entry, data_root, reporter, fitting)
        data = _used(use, data, limit)
    except BenchmarkError:
        return None
    people = data.info.get("patients") or getattr(plugin, "patients", "") or str(data.folder)
    return imprint(data, people, data_root / FOLDER, reporter)


def _used(use: Use, data: Prepared, limit: int | None) -> Prepared:
    """Return the rows that a run may use: a task with a head counts its limit after it has chosen."""
    if use.role == "corpus":
        data = share(data, float(use.entry.get("fraction", 1)))
    limits = [most for most in (use.entry.get("limit"), limit) if most is not None]
    if not limits or use.part or min(limits) >= len(data):
        return data
    return data.select(np.arange(min(limits)), f"first {min(limits)}")


def _compared(found: Sequence[tuple[Use, Imprint]]) -> Iterator[Overlap]:
    for at, (use, mine) in enumerate(found):
        if use.role == "head":
            continue
        again = mine.repeated()
        if again.any():
            yield Overlap(use, use, len(mine), mine.named(again), contradicted=_named(mine, mine))
        for place, (other, theirs) in enumerate(found):
            seen = _has_seen(use, other)
            if place == at or not (seen or _worth_telling(use, mine, other, theirs)):
                continue
            shared, people = mine.within(theirs), mine.of_patients_of(theirs)
            if (mine.key, theirs.key) not in _NEAR:  # sets stand in several tasks and cells
                _NEAR[mine.key, theirs.key] = mine.near(theirs)
            alike = np.where(shared, -1, _NEAR[mine.key, theirs.key])
            item = Overlap(
                use, other, len(mine), mine.named(shared),
                tuple((mine.ids[row], theirs.ids[alike[row]]) for row in np.flatnonzero(alike >= 0)),
                mine.named(people), len({mine.patients[row] for row in np.flatnonzero(people)}),
                seen, _named(mine, theirs) if shared.any() else (),
            )  # fmt: skip
            if item.images or item.near or item.of_patients:
                yield item


def _named(mine: Imprint, theirs: Imprint) -> tuple[tuple[str, str], ...]:
    return tuple((mine.ids[row], theirs.ids[column]) for row, column in mine.contradicted(theirs))


def _has_seen(use: Use, other: Use) -> bool:
    """Return whether what ``use`` measures has seen the images of ``other``."""
    if use.role != "test" or other.role == "test":
        return False
    return other.role != "head" or (use.task, use.dataset) == (other.task, other.dataset)


def _worth_telling(use: Use, mine: Imprint, other: Use, theirs: Imprint) -> bool:
    """Return whether a pair that is not a leak is reported: validation set with corpus, two different test sets."""
    if (use.role, other.role) == ("validation", "corpus"):
        return True
    return use.role == other.role == "test" and mine.key != theirs.key and use.dataset != other.dataset
