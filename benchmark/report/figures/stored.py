"""Arrays that cells have stored beside their results, and methods that have stored the same ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmark.errors import StoreError
from benchmark.report.collect import Block, Row
from benchmark.report.significance.comparisons import is_transductive
from benchmark.report.significance.evidence import read_predictions

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Shown:
    """What several methods found: those with the same arrays stand together.

    Attributes:
        titles: of the methods.
        number: row of the first of them in the block, which gives the look.
        arrays: of its first run.
        runs: arrays of all its runs. scales: logit scale of each of them.
    """

    titles: list[str]
    number: int
    arrays: Mapping[str, Array]
    runs: Sequence[Mapping[str, Array]]
    scales: Sequence[float]

    @property
    def title(self) -> str:
        """One title for all, short enough for a column."""
        return self.titles[0] + (f" and {len(self.titles) - 1} more" if len(self.titles) > 1 else "")


@dataclass(frozen=True)
class Stored:
    """What the methods of a block have stored for one dataset of a task; read once for all figures.

    Attributes:
        cells: for each row with arrays its number in the block, its title, and arrays and logit scale of each run.
    """

    block: Block
    task: str
    dataset: str
    cells: Sequence[tuple[int, str, Sequence[tuple[Mapping[str, Array], float]]]]

    @classmethod
    def read(cls, block: Block, task: str, dataset: str) -> Stored:
        """Read the arrays of all rows."""
        found = [
            (number, row.title, list(_arrays(row, task, dataset))) for number, row in enumerate(block.rows)
        ]
        return cls(block, task, dataset, [cell for cell in found if cell[2]])

    @property
    def name(self) -> str:
        """Title of the dataset."""
        return self.block.dataset_title(self.dataset, self.task)

    def shown(self, keys: Sequence[str]) -> list[Shown]:
        """Return the methods that have stored these arrays, in the order of the block."""
        found: list[Shown] = []
        for number, title, stored in self.cells:
            having = [(arrays, scale) for arrays, scale in stored if set(keys) <= set(arrays)]
            if not having:
                continue
            runs = [arrays for arrays, _ in having]
            twin = next((other for other in found if _equal(other.arrays, runs[0], keys)), None)
            if twin is not None:
                twin.titles.append(title)
            else:
                found.append(Shown([title], number, runs[0], runs, [scale for _, scale in having]))
        return found


def results(block: Block) -> list[tuple[str, str]]:
    """Return every (task, dataset) that some run of a block has results of."""
    found = {
        (task, dataset): None
        for row in block.rows
        for run in row.runs
        for task, result in run.tasks.items()
        for dataset in result.get("datasets") or {}
    }
    return list(found)


def shared_columns(methods: Sequence[Shown]) -> str:
    """Return a sentence for each group of methods that stored the same arrays, starting with a space; or nothing."""
    groups = [method.titles for method in methods if len(method.titles) > 1]
    return "".join(f" The same results, shown once: {', '.join(titles)}." for titles in groups)


def _arrays(row: Row, task: str, dataset: str) -> Iterator[tuple[Mapping[str, Array], float]]:
    for run in row.runs_at(task, dataset):
        # a missing or damaged file costs its picture, not the report
        with contextlib.suppress(StoreError):
            found = read_predictions(run, task, dataset)
            yield found.arrays, found.protocol.scale


def _equal(ones: Mapping[str, Array], others: Mapping[str, Array], keys: Sequence[str]) -> bool:
    return all(np.array_equal(ones[key], others[key]) for key in keys)


@dataclass(frozen=True)
class Verdicts:
    """What the methods of a block answered on one dataset.

    Attributes:
        classes: names of the classes. target: true class of each image, [N].
        methods: those that answered these images, with ``similarity`` [N, C] and ``target`` [N] in their arrays.
    """

    classes: Sequence[str]
    target: Array
    methods: list[Shown]

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.target)


def verdicts(stored: Stored) -> Verdicts | None:
    """Return the answers where an image has one class; transductive answers are no one model's."""
    block, task, dataset = stored.block, stored.task, stored.dataset
    methods = [one for one in stored.shown(("similarity", "target")) if _is_plain(one)]
    if not methods or is_transductive(block, (task, dataset, "")):
        return None
    first = methods[0].arrays
    shape = first["similarity"].shape
    methods = [one for one in methods if all(run["similarity"].shape == shape for run in one.runs)]
    named = next((info["classes"] for info in block.facts(dataset, task) if info.get("classes")), ())
    classes = named if len(named) == shape[1] else range(shape[1])
    return Verdicts([str(name) for name in classes], first["target"], methods)


def _is_plain(one: Shown) -> bool:
    return one.arrays["target"].ndim == 1 and one.arrays["similarity"].ndim == 2
